"""The five folders are installed as ``pudica.models``, ``pudica.clients`` and so on.

``pudica`` itself is a namespace without a folder: one of that name here would shadow the installed
packages in a Flower bundle.
"""

from setuptools import find_packages, setup

FOLDERS = ("models", "clients", "strategies", "analysis", "simulations")

packages = find_packages(include=[pattern for name in FOLDERS for pattern in (name, f"{name}.*")])
setup(
    packages=[f"pudica.{package}" for package in packages],
    package_dir={f"pudica.{name}": name for name in FOLDERS},
)
