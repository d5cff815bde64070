"""The package tinyres, with the folders ``kernels`` and ``benchmarks`` inside. Settings of the tools: pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.editable_wheel import editable_wheel

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "tinyres" / "__init__.py").read_text("utf-8"))
assert version

OWN = find_packages(include=["tinyres", "tinyres.*"])


class Editable(editable_wheel):
    """``pip install -e .`` puts the path of the checkout into a .pth file, which type checkers read; an import hook, which
    the folders beside the package would need, they cannot see. ``tinyres/__init__.py`` finds those folders itself.
    """

    def finalize_options(self) -> None:
        self.distribution.package_dir, self.distribution.packages = {"": "."}, OWN
        super().finalize_options()


setup(
    name="tinyres",
    version=version[1],
    description="Residual networks from scratch: hand-written backward passes and kernels for CPU and GPU",
    long_description=(here / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="The tinyres authors",
    maintainer="The tinyres authors",
    license_expression="MIT",
    license_files=["LICENSE"],
    keywords="autograd backpropagation resnet residual-networks cifar deep-learning education numpy numba cuda",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        *(f"Programming Language :: Python :: 3{minor}" for minor in ("", " :: Only", ".10", ".11", ".12", ".13")),
        "Topic :: Education",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=[
        *OWN,
        *(f"tinyres.{folder}" for folder in ("kernels", "benchmarks")),
        *(f"tinyres.kernels.{name}" for name in find_packages("kernels")),
        "tinyres.course.pages",
    ],
    cmdclass={"editable_wheel": Editable},
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
        "safetensors>=0.4.1",
        "rich>=13",
        "matplotlib>=3.8.4",
        "markdown-it-py>=2.2",  # the pages of the labs in HTML
        "tomli>=2; python_version < '3.11'",  # tinyres train --config FILE.toml
    ],
    extras_require={
        # CuPy 14 knows bfloat16; its "ctk" are CUDA's compiler, headers and libraries, so that a driver is all one needs
        "cuda12": ["cupy-cuda12x[ctk]>=14"],
        "cuda13": ["cupy-cuda13x[ctk]>=14"],
        "images": ["pillow>=10"],  # own images (matplotlib brings it, too)
        "notebook": ["nbformat>=5.9", "notebook>=7", "ipywidgets>=8"],  # tinyres course N --notebook; a live bar
        "tensorboard": ["tensorboardX>=2.6"],  # tinyres train --log tensorboard
        "yaml": ["pyyaml>=6"],  # tinyres train --config FILE.yaml
        "docs": ["sphinx>=8", "myst-parser>=4", "furo>=2024.8.6"],  # the site: sphinx-build docs site
        "completion": ["argcomplete>=3.3"],  # in the shell; see the README
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
            "ipywidgets>=8",
            "tensorboardX>=2.6",
            "pyyaml>=6",
            "distributed>=2024.5",
            "argcomplete>=3.3",
            "onnx>=1.16",
            "onnxruntime>=1.18",
        ],
    },
    entry_points={"console_scripts": ["tinyres = tinyres.cli:main"]},
)
