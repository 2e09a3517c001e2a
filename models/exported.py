"""Load exported programs (``.pt2``) without running any code from the file.

``torch.export.load`` of PyTorch 2.15 does the following, which its documentation warns about:

* constants that are custom objects, and tensors marked ``use_pickle``, are unpickled;
* weights and constants stored as ``NAME.pt`` (the format up to 2.8) and sample inputs go to
  ``torch.load``, which falls back to ``weights_only=False`` if safe loading fails;
* compiled code (``data/aotinductor``) is loaded as a shared library;
* symbolic sizes go to ``sympy.sympify``, which is ``eval``; guards and the graph's names become
  source code that is executed; tree specifications may import modules.

So the archive is inspected first, with PyTorch's own reader and on the very bytes that are
loaded afterwards. It may hold raw tensors, a graph of ``aten`` operators with plain names, and
sample inputs that load with ``weights_only=True``. Anything else is refused.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.export.pt2_archive import PT2ArchiveReader

from pudica.models.architectures import ImageTask
from pudica.models.custom import FrozenProgram
from pudica.models.errors import RequestError
from pudica.models.trial import compute_logits, format_shape

_PROGRAM = "models/model.json"
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"
_PAYLOADS = (
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)
_MEMBER = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|extra/.*"
    r"|archive_format|archive_version|byteorder|version|\.data/\w+"
)
_NAME = re.compile(r"(?:(?!__)\w+(?:\.(?!__)\w+)*)?")
_OPERATOR = re.compile(
    # from_file would read and create files; the rest of aten computes.
    r"torch\.ops\.aten\.(?!from_file\.)\w+\.\w+|torch\.sym_\w+"
    r"|_operator\.(?:add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|getitem)"
)
_SIZE = re.compile(
    r"(?!.*\*\*)(?:Symbol\('[su]\d+'(?:, (?:integer|positive|nonnegative)=True)*\)|[su]\d+"
    r"|(?:Integer|Add|Mul|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv)\(|[-+*/(), \d])*"
)
_GUARD = re.compile(r"L\['\w+'\]\.size\(\)\[\d+\] (?:==|<=|>=) \d+")
_TREE = re.compile(r'(?:"(?:type|context|children_spec)"|"builtins\.\w+"|"null"|"\[\]"|[^"])*')
_RULES = {
    "target": _OPERATOR,
    "expr_str": _SIZE,
    "guards_code": _GUARD,
    "in_spec": _TREE,
    "out_spec": _TREE,
    "torch_version": re.compile(r"[\w.+]*"),
}
# The exporter's notes on an operator are never evaluated. The key alone would not do: a tensor
# may be called "metadata", too.
_NOTES = ("nodes", "metadata")


def load_program(path: Path, task: ImageTask) -> FrozenProgram:
    """Load an exported program and check that it fits the task.

    Raises RequestError if the file is missing or unsafe, was exported in training mode or with a
    fixed batch size, takes other images or classes, or is not differentiable.
    """
    program = _read_program(path)
    _check_mode(path, program)
    _check_input(path, program, task)
    model = FrozenProgram(program.module())
    images = torch.zeros(2, task.channels, *task.sides, requires_grad=True)
    with torch.enable_grad():
        logits = compute_logits(model, images, f"exported program '{path}'", task.num_classes)
    if not logits.requires_grad:
        raise RequestError(
            f"exported program '{path}' returns logits that do not depend on its images in a "
            "differentiable way, this experiment needs gradients with respect to them"
        )
    return model


def _read_program(path: Path) -> ExportedProgram:
    # Not torch.export.load: if this fails, it retries with an old, unsafe format.
    from torch.export.pt2_archive._package import load_pt2

    if not path.is_file():
        raise RequestError(f"exported program '{path}' does not exist")
    content = path.read_bytes()
    try:
        _inspect_archive(content)
        return load_pt2(io.BytesIO(content)).exported_programs["model"]
    except RequestError as error:
        raise RequestError(f"exported program '{path}' is not safe to load: {error}") from None
    except Exception as error:
        raise RequestError(
            f"exported program '{path}' cannot be read, write it with torch.export.save on the "
            f"CPU: {type(error).__name__}: {error}"
        ) from error


def _inspect_archive(content: bytes) -> None:
    """Refuse an archive that holds anything but tensors and a graph of known operators."""
    archive = PT2ArchiveReader(io.BytesIO(content))
    for member in archive.get_file_names():
        if member not in (_PROGRAM, _SAMPLE_INPUTS, *_PAYLOADS) and not _MEMBER.fullmatch(member):
            raise RequestError(f"it holds '{member}', which is neither a tensor nor a graph")
    for payload in _PAYLOADS:
        for name, entry in json.loads(archive.read_string(payload))["config"].items():
            plain = re.fullmatch(r"(?:weight|tensor)_\d+", entry["path_name"])
            if entry["use_pickle"] is not False or not plain:
                raise RequestError(f"'{name}' is a pickled object, not a tensor")
    for key, text in _iterate_strings(json.loads(archive.read_string(_PROGRAM))):
        if not _RULES.get(key, _NAME).fullmatch(text):
            raise RequestError(f"its graph holds {text[:80]!r} as {key or 'a name'}")
    try:
        torch.load(io.BytesIO(archive.read_bytes(_SAMPLE_INPUTS)), weights_only=True)
    except Exception as error:
        raise RequestError("its sample inputs are more than tensors") from error


def _iterate_strings(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string of a JSON document, keys included, with the key it belongs to."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield "", name
            if (key, name) != _NOTES:
                yield from _iterate_strings(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from _iterate_strings(value, key)
    elif isinstance(node, str):
        yield key, node


def _check_mode(path: Path, program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None:
            continue
        arguments = dict(zip((each.name for each in schema.arguments), node.args, strict=False))
        arguments |= node.kwargs
        if arguments.get("train") is True or arguments.get("training") is True:
            raise RequestError(
                f"exported program '{path}' was exported in training mode "
                f"({node.target}): call model.eval() before torch.export.export"
            )


def _check_input(path: Path, program: ExportedProgram, task: ImageTask) -> None:
    specs = program.graph_signature.input_specs
    inputs = {spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT}
    shapes = [
        tuple(getattr(node.meta.get("val"), "shape", ()))
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in inputs
    ]
    needed = (task.channels, *task.sides)
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise RequestError(
            f"exported program '{path}' takes {len(shapes)} inputs of "
            f"{[len(shape) for shape in shapes]} dimensions, this experiment needs one input "
            "(batch, channels, height, width)"
        )
    batch, *image = shapes[0]
    if isinstance(batch, int):
        raise RequestError(
            f"exported program '{path}' takes batches of exactly {batch}, this experiment needs "
            "any size: export it with dynamic_shapes=({0: torch.export.Dim('batch')},)"
        )
    if any(isinstance(has, int) and has != want for has, want in zip(image, needed, strict=True)):
        raise RequestError(
            f"exported program '{path}' takes images of {format_shape(image)}, this experiment "
            f"needs {format_shape(needed)} (channels x height x width)"
        )
