"""Small files laid out as CelebA's."""

from __future__ import annotations

from pathlib import Path


def write_celeba(root: Path, young: str = "1", apart: bool = False) -> list[str]:
    """Write all of CelebA but the pictures; return their names.

    Every other face is male, every third of the same person; ``young`` says of three in a row
    which are. ``apart``: parts have no person in common, as CelebA's.
    """
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True, exist_ok=True)
    files = [f"{i:06d}.png" for i in range(12)]
    parts = [0] * 8 + [1] * 2 + [2] * 2
    is_young = [1 if young[i % len(young)] == "1" else -1 for i in range(len(files))]
    people = [i % 3 + 3 * apart * part for i, part in enumerate(parts)]
    lines = {
        "list_eval_partition.txt": [f"{f} {p}" for f, p in zip(files, parts, strict=True)],
        "identity_CelebA.txt": [f"{f} {p}" for f, p in zip(files, people, strict=True)],
        "list_bbox_celeba.txt": ["12", "id x y w h", *(f"{f} 0 0 1 1" for f in files)],
        "list_landmarks_align_celeba.txt": ["12", "a b", *(f"{f} 0 0" for f in files)],
        "list_attr_celeba.txt": [
            "12",
            "Male Young ",
            *(f"{f} {1 if i % 2 else -1}  {is_young[i]}" for i, f in enumerate(files)),
        ],
    }
    for name, content in lines.items():
        (folder / name).write_text("\n".join(content) + "\n")
    return [f"celeba/img_align_celeba/{name}" for name in files]
