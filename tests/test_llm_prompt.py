import pytest
import torch

from models.config import ModelConfig
from models.llm.frozen import build_llm
from models.llm.prompt import Prompt
from tests.micro import micro_config
from utils.errors import UserError
from utils.frame import CAMERAS

CPU = torch.device("cpu")


def words(text):
    return [len(word) for word in text.split()]


def test_the_default_prompt_names_the_cameras_in_tensor_order():
    named = ", ".join(camera.removeprefix("CAM_").replace("_", " ").lower() for camera in CAMERAS)
    assert f"in this order: {named}." in ModelConfig().prompt


def test_contexts_follow_the_prompt_padded_and_marked():
    ids, valid = Prompt("draw a map", words, pad_id=9, max_tokens=10).batch(["", "Boston, night", "rain"], CPU)
    assert ids.tolist() == [[4, 1, 3, 9, 9], [4, 1, 3, 7, 5], [4, 1, 3, 4, 9]]
    assert valid.sum(1).tolist() == [3, 5, 4] and valid.dtype == torch.bool
    assert all(row == sorted(row, reverse=True) for row in valid.tolist()), "padding comes last"


def test_each_wording_is_tokenised_once():
    asked = []

    def tokenize(text):
        asked.append(text)
        return words(text)

    prompt = Prompt("map", tokenize, 0, 10)
    for _ in range(3):
        prompt.batch(["", "rain", "rain"], CPU)
    assert asked == ["map", "map rain"]


def test_a_text_longer_than_the_context_is_one_line():
    with pytest.raises(UserError, match="3 tokens, the LLM's context leaves 2"):
        Prompt("draw a map", words, 0, max_tokens=2)
    prompt = Prompt("map", words, 0, max_tokens=2)
    prompt.batch(["rain"], CPU)
    with pytest.raises(UserError, match="'rain at night'.* 4 tokens") as caught:
        prompt.batch(["rain at night"], CPU)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_drops_the_prompt_is_noticed():
    with pytest.raises(UserError, match="'draw a map': the LLM's tokenizer makes no token of it"):
        Prompt("draw a map", lambda text: [], 0, 10)


def test_scene_and_map_queries_need_their_room():
    """2048 positions, of which scene tokens and map queries share one."""
    room = 2048 - 1
    build_llm(micro_config(prompt="map " * room))
    with pytest.raises(UserError, match=f"{room + 1} tokens, the LLM's context leaves {room}"):
        build_llm(micro_config(prompt="map " * (room + 1)))


def test_prompt_embeddings_are_the_llms_own_and_an_empty_prompt_is_none():
    llm = build_llm(micro_config(prompt="draw a map"))
    embeddings, valid = llm.prompt(["", "at night"])
    assert embeddings.shape == (2, 5, 16) and valid.sum(1).tolist() == [3, 5]
    table = llm.model.get_input_embeddings().weight
    assert torch.equal(embeddings[1, :3], embeddings[0, :3]) and (table == embeddings[0, 0]).all(1).any()
    empty, valid = build_llm(micro_config(prompt="")).prompt(["", ""])
    assert empty.shape == (2, 0, 16) and valid.shape == (2, 0)
