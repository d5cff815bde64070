"""The package tinyres, with the folders ``kernels`` and ``benchmarks`` inside. Settings of the tools: pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "tinyres" / "__init__.py").read_text("utf-8"))
assert version

setup(
    name="tinyres",
    version=version[1],
    description="Residual networks from scratch: hand-written backward passes and kernels for CPU and GPU",
    long_description=(here / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["tinyres", "tinyres.*"]),
        *(f"tinyres.{folder}" for folder in ("kernels", "benchmarks")),
        *(f"tinyres.kernels.{name}" for name in find_packages("kernels")),
        "tinyres.course.pages",
    ],
    package_dir={"tinyres.kernels": "kernels", "tinyres.benchmarks": "benchmarks", "tinyres.course.pages": "docs/course"},
    package_data={
        "tinyres": ["py.typed"],
        "tinyres.explain.page": ["static/*"],
        "tinyres.course.pages": ["*.md", "figures/*.svg"],
        "tinyres.kernels.cuda": ["src/*.cu", "src/*.cuh", "src/*.h", "resources.txt"],
    },
    install_requires=[
        "numpy>=2.0",
        "ml_dtypes>=0.5",  # bfloat16 for NumPy
        "threadpoolctl>=3.1",  # one BLAS thread each, while the kernels' own threads run
        "numba>=0.60",
        "safetensors>=0.4",
        "rich>=13",
        "matplotlib>=3.8.4",
        "markdown-it-py>=2.2",  # the pages of the labs in HTML
    ],
    extras_require={
        # CuPy 14 knows bfloat16; its "ctk" are CUDA's compiler, headers and libraries, so that a driver is all one needs
        "cuda12": ["cupy-cuda12x[ctk]>=14"],
        "cuda13": ["cupy-cuda13x[ctk]>=14"],
        "images": ["pillow>=10"],  # own images (matplotlib brings it, too)
        "notebook": ["nbformat>=5.9", "notebook>=7"],  # tinyres course N --notebook, and what opens it
        "docs": ["sphinx>=8", "myst-parser>=4", "furo>=2024.8.6"],  # the site: sphinx-build docs site
        "onnx": ["onnx>=1.16", "onnxruntime>=1.18"],  # tinyres export --format onnx
        "cluster": ["distributed>=2024.5"],  # tinyres lab --scheduler
        "test": [
            "pytest>=8",
            "hypothesis>=6.100",
            "ruff==0.17.6",
            "mypy==2.4.1",
            "nvidia-cuda-nvrtc-cu12",
            "nbformat>=5.9",
            "nbclient>=0.10",
            "ipykernel>=6",
            "distributed>=2024.5",
            "onnx>=1.16",
            "onnxruntime>=1.18",
        ],
    },
    entry_points={"console_scripts": ["tinyres = tinyres.cli:main"]},
)
