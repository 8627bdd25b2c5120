"""The frozen model of an exported folder, its twins with random weights, and the image processor that belongs to it.

No code of a folder is run unless the caller trusts it: a stock model of transformers is built from config.json, and the
image processor is the one of this package when the folder holds the same file.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
import transformers
from safetensors import SafetensorError

from curia2_jax import curia_image_processor
from curia2_jax.errors import UserError
from curia2_jax.files import is_plain


class Processor(Protocol):
    """Turns slices into pixels, as an image processor of transformers does."""

    crop_size: int

    def __call__(self, images: Any, **kwargs: Any) -> Mapping[str, Any]: ...


PROCESSOR = Path(curia_image_processor.__file__)
SETTINGS = "preprocessor_config.json"
INDEX = "model.safetensors.index.json"
KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit")  # that launch/convert.py writes
# No code of the folder, no pickle, and no attention kernel that config.json would have fetched and run.
UNTRUSTED: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True, "attn_implementation": "sdpa"}


class Backbone(NamedTuple):
    """A frozen model on its device. `prefix`: number of tokens before the patches (class and registers)."""

    model: transformers.PreTrainedModel
    patch_size: int
    prefix: int


class Model:
    """An exported folder: the trained backbone, what it is compared with, and the image processor.

    One backbone is in memory at a time: asking for another lets the last one go, unless the caller keeps it.

    Attributes:
      config: of transformers.
      processor: the image processor that belongs to it.
      trusted: whether a processor that is not ours was run.
      parameters: how many the backbone has.
      sha256: of the weight files.
      began: folders of weights that runs began with; `seeds`: how many random backbones there are without.
    """

    def __init__(self, folder: Path, device: str, trusted: bool, began: Sequence[Path], seeds: int):
        self.folder, self.device, self.trusted, self.began = folder, device, trusted, tuple(began)
        self.processor = load_processor(folder, trusted)
        self.seeds = len(began) or seeds
        self._last: tuple[object, Backbone] | None = None
        trained = self.trained.model
        self.config, self.parameters = trained.config, sum(parameter.numel() for parameter in trained.parameters())
        self.sha256 = sha256(sorted(folder.glob("*.safetensors")))

    @property
    def trained(self) -> Backbone:
        """The backbone of the folder."""
        return self._held("trained", lambda: load_weights(self.folder))

    @property
    def randoms(self) -> "Randoms":
        """Backbones of the same shape that have learned nothing, one a seed."""
        return Randoms(self)

    @property
    def linear(self) -> Backbone:
        """One whose blocks add next to nothing, so that its patch tokens are a linear projection of each patch, and its
        class token is a constant."""
        return self._held("linear", lambda: initial(self.config, 0, LINEAR))

    def let_go(self) -> None:
        """Frees the backbone that was asked for last."""
        self._last = None

    def _held(self, key: object, load: Callable[[], transformers.PreTrainedModel]) -> Backbone:
        if self._last is None or self._last[0] != key:
            self._last = None  # before the next one is loaded
            self._last = key, _freeze(load(), self.device)
        return self._last[1]


class Randoms(Sequence[Backbone]):
    """The random backbones of a model, each made when it is asked for."""

    def __init__(self, model: Model):
        self.model = model

    def __len__(self) -> int:
        return self.model.seeds

    def __getitem__(self, seed):
        if not 0 <= seed < len(self):
            raise IndexError(seed)
        model = self.model
        load = lambda: load_weights(model.began[seed]) if model.began else initial(model.config, seed)  # noqa: E731
        return model._held(seed, load)


SEEDS = 3  # random backbones
LINEAR = 1e-5  # LayerScale of one whose blocks add nothing


def load_model(
    folder: str | Path,
    device: str,
    trust_remote_code: bool = False,
    began: Sequence[str | Path] = (),
    seeds: int = SEEDS,
) -> Model:
    """Loads an exported folder without any network access.

    Args:
      trust_remote_code: run the image processor of the folder where it is not that of this package.
      began: folders of weights that runs began with (`launch/convert.py --checkpoint RUN@0`), for the random backbones.
      seeds: without `began`, how many random backbones there are: the initial weights that transformers gives this
        configuration with LayerScale 1 after `torch.manual_seed(0)`, 1 and so on.
    Raises:
      UserError: a part of the folder is missing or damaged, the model is of another kind, the image processor is not
        trusted, or there is no such device.
    """
    folder = Path(folder)
    weights = sorted(folder.glob("*.safetensors"))
    for name in ("config.json", SETTINGS, PROCESSOR.name):
        if not (folder / name).is_file():
            raise UserError(f"--model: {folder} has no {name}; write the folder that launch/convert.py made")
    if not weights:
        raise UserError(f"--model: {folder} has no model.safetensors; write the folder that launch/convert.py made")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: found cuda, but PyTorch sees no GPU; write --device cpu")
    torch.backends.cudnn.allow_tf32 = False  # PyTorch's default for convolutions, of which the patch embedding is one
    for one in began:
        load_weights(Path(one))  # so that a fault is told now
    return Model(folder, device, trust_remote_code, [Path(one) for one in began], seeds)


def sha256(paths: Sequence[Path]) -> str:
    """Over the content of files."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def initial(config: transformers.PretrainedConfig, seed: int, layerscale: float = 1.0) -> transformers.PreTrainedModel:
    """Weights as transformers draws them from a seed, every block scaled by `layerscale`."""
    config = copy.deepcopy(config)
    if hasattr(config, "layerscale_value"):
        config.layerscale_value = layerscale
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.AutoModel.from_config(config, trust_remote_code=False)


def load_weights(folder: Path, kinds: Sequence[str] = KINDS) -> transformers.PreTrainedModel:
    """A stock model of transformers, of one of these kinds, with every weight of the folder in its place."""
    _check_index(folder / INDEX)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        model, info = transformers.AutoModel.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, **UNTRUSTED
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--model: transformers cannot load {folder}: {str(error).splitlines()[0]}") from None
    wrong = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[kind]]
    if wrong:
        raise UserError(f"--model: {folder}: {len(wrong)} weights do not fit config.json, first {wrong[0]}")
    if model.config.model_type not in kinds:
        raise UserError(f"--model: {folder}: found model_type {model.config.model_type}; write dinov2")
    return model


def _check_index(path: Path) -> None:
    """Raises UserError if the index of a model in several files names one that is not beside it."""
    if not path.exists():
        return
    try:
        names = json.loads(path.read_text())["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"--model: {path}: no index of weights; fetch the model from who made it") from None
    if wrong := [name for name in names if not is_plain(name)]:
        raise UserError(f"--model: {path}: names {wrong[0]!r}, which is no file beside it; fetch the model anew")


def _freeze(model: transformers.PreTrainedModel, device: str) -> Backbone:
    model.requires_grad_(False).eval().to(device=device, dtype=torch.float32)
    return Backbone(model, model.config.patch_size, 1 + getattr(model.config, "num_register_tokens", 0))


def load_processor(folder: Path, trust_remote_code: bool = False) -> Processor:
    """The image processor of a folder, set up by its preprocessor_config.json.

    It turns one slice (H, W) into {"pixel_values": (1, 1, R, R) float32}, clipped below air or not. A file that equals
    the one of this package is not run: the package's is. With `trust_remote_code`, transformers runs any other.

    Raises:
      UserError: the settings are no JSON, or the file is another one and is not trusted or cannot be loaded.
    """
    path = folder / SETTINGS
    try:
        settings = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not JSON ({error}); write the folder that launch/convert.py made") from None
    path = folder / PROCESSOR.name
    if path.read_bytes() == PROCESSOR.read_bytes():
        return cast(Processor, curia_image_processor.CuriaImageProcessor(**settings))
    if not trust_remote_code:
        raise UserError(
            f"{path}: not the image processor of this version; export the run anew with launch/convert.py, or write "
            "--trust-remote-code to run the code of that file"
        )
    try:
        return transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    except Exception as error:  # the code of others raises what it likes
        raise UserError(f"{path}: transformers cannot load it: {str(error).splitlines()[0]}") from None
