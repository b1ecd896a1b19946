"""Where a language model lies and what it is: its settings and its tokenizer, read before any weight."""

import copy
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from models.tensor_files import CheckpointSource, find_checkpoint, read_json
from utils.errors import UserError, one_line

FLAG = "--llm-path"
_WANTED_FILES = (
    "config.json, tokenizer_config.json, tokenizer.json or tokenizer.model, and the weights (model*.safetensors or "
    "pytorch_model*.bin, with their index.json)"
)
_EXPECTED = "expected a decoder-only language model such as llama, mistral, qwen2 or qwen3"
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_OTHER_TOKENIZER_FILES = ("merges.txt", "special_tokens_map.json", "added_tokens.json")
_MASKABLE_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class LLMFiles:
    """A language model on disk: where, its Hugging Face settings, and its file's name if it is a GGUF file."""

    source: CheckpointSource
    folder: Path
    config: PreTrainedConfig
    gguf_name: str | None = None


def require_packages(what: str, *modules: str) -> None:
    """Raise UserError unless these modules can be imported; it names the packages that pip knows them by."""
    pip_names = {"google.protobuf": "protobuf"}
    missing = [pip_names.get(name, name) for name in modules if not _importable(name)]
    if missing:
        raise UserError(f"{what}: needs a package that is not installed; pip install {' '.join(missing)}")


def find_llm(llm_path: str) -> LLMFiles:
    """The model that a folder, a .gguf file or a hub id names; of a hub id only config.json is fetched.

    Raises UserError when it is not there or not a decoder-only model that obeys an attention mask.
    """
    source = find_checkpoint(FLAG, llm_path, llm_path, _WANTED_FILES)
    if source.weights_name and source.weights_name.endswith(".gguf"):
        require_packages(f"{source}", "gguf")
        config = _read_config(source.folder / source.weights_name, gguf_file=source.weights_name)
        _require_decoder_only(source.folder / source.weights_name, config)
        return LLMFiles(source, source.folder, config, source.weights_name)
    path = source.first("config.json")
    if path is None:
        raise UserError(f"{source}: has no config.json; put {_WANTED_FILES} into a folder and give {FLAG} FOLDER")
    values = read_json(path)
    if "model_type" not in values:
        raise UserError(f"{path}: names no model_type; {_EXPECTED}")
    if values["model_type"] not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"{path}: model_type is {values['model_type']!r}; {_EXPECTED}")
    if values.get("quantization_config"):
        raise UserError(f"{path}: its weights are already quantised; give the half-precision model, "
                        "and --llm-quantization if need be")
    config = _read_config(path)
    _require_decoder_only(path, config)
    return LLMFiles(source, path.parent, config)


def first_layers(llm_path: str, config: PreTrainedConfig, count: int) -> PreTrainedConfig:
    """Settings of the model that ends after `count` layers, 0: after its last. Raises UserError if it has fewer."""
    if count == 0:
        return config
    if count > config.num_hidden_layers:
        raise UserError(f"--llm-layers {count}: {llm_path} has {config.num_hidden_layers}; give no more, or 0 for all")
    config = copy.deepcopy(config)
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]
    return config


def load_tokenizer(files: LLMFiles) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises UserError when files or packages are missing or it does not fit the model."""
    source = files.source
    if files.gguf_name is None:
        _require_tokenizer_files(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.folder, gguf_file=files.gguf_name, local_files_only=True)
    except Exception as error:  # the tokenizer libraries raise a dozen types, one of them plain Exception
        raise UserError(f"{source}: its tokenizer cannot be read ({one_line(error)}); "
                        f"put {_WANTED_FILES} into a folder and give {FLAG} FOLDER") from error
    if len(tokenizer) > files.config.vocab_size:
        raise UserError(f"{source}: its tokenizer has {len(tokenizer)} tokens, its embedding "
                        f"{files.config.vocab_size}; take the tokenizer and the weights of the same model")
    return tokenizer


def _require_tokenizer_files(source: CheckpointSource) -> None:
    # One question for all of them: what a hub id has is fetched by the asking, and no repository has every one.
    found = source.those_of("tokenizer_config.json", *_VOCABULARY_FILES, *_OTHER_TOKENIZER_FILES)
    vocabulary = found.intersection(_VOCABULARY_FILES)
    if not vocabulary or "tokenizer_config.json" not in found:
        # Without tokenizer_config.json, transformers guesses, and tokenises Vicuna's prompt without its first token.
        missing = "tokenizer_config.json" if vocabulary else " and no ".join(_VOCABULARY_FILES)
        raise UserError(f"{source}: has no {missing}; put {_WANTED_FILES} into a folder and give {FLAG} FOLDER")
    if vocabulary == {"tokenizer.model"}:
        require_packages(f"{source}: tokenizer.model", "sentencepiece", "google.protobuf")


def _read_config(path: Path, gguf_file: str | None = None) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(path.parent, gguf_file=gguf_file, local_files_only=True)
    except Exception as error:  # what a damaged file or a setting of another version raises depends on the model
        raise UserError(f"{path}: settings cannot be read ({one_line(error)}); {_EXPECTED}") from error


def _require_decoder_only(path: Path, config: PreTrainedConfig) -> None:
    kind = None
    if config.is_encoder_decoder:
        kind = "an encoder-decoder"
    elif config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        kind = "an encoder"
    elif config.get_text_config() is not config:
        kind = "made of several models"
    elif not isinstance(getattr(config, "max_position_embeddings", None), int):
        kind = "without a table of positions or RoPE, so that position ids do not bind it"
    elif not set(getattr(config, "layer_types", None) or ()) <= _MASKABLE_LAYERS:
        kind = "not attention alone, so that an attention mask does not bind it"
    if kind:
        raise UserError(f"{path}: model_type is {config.model_type!r}, {kind}; {_EXPECTED}")


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a missing parent package
        return False
