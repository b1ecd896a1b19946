import pytest
import torch
from transformers import LlamaForCausalLM

from models.attention_mask import map_attention_mask, map_position_ids
from models.config import RandomLLMConfig
from models.detector import build_detector
from models.llm import FrozenLLM, build_llm, build_random_llama
from tests.micro import micro_config, random_batch
from utils.errors import UserError

CONFIG = RandomLLMConfig(hidden_size=16, num_layers=2, num_heads=2, mlp_size=32, vocab_size=64)


def test_random_llama_depends_on_its_seed_alone():
    torch.manual_seed(1)
    first = build_random_llama(CONFIG)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1)), "building it must not move the global random state"
    second = build_random_llama(CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(16**-0.5, rel=0.1)


def test_with_a_causal_mask_hidden_states_equal_those_of_the_causal_model():
    llama = build_random_llama(CONFIG)
    reference = LlamaForCausalLM(llama.config).eval()
    reference.model.load_state_dict(llama.state_dict())
    ids = torch.randint(0, 64, (2, 9))
    expected = reference(ids, output_hidden_states=True).hidden_states[-1]
    mask = torch.ones(9, 9, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    states = FrozenLLM(llama, [1])(llama.embed_tokens(ids), mask, torch.arange(9).expand(2, -1))
    assert torch.allclose(states, expected, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_token_changes_exactly_the_outputs_that_may_see_it(attention):
    llama = build_random_llama(CONFIG)
    llama.set_attn_implementation(attention)
    llm = FrozenLLM(llama, [1])
    valid = torch.tensor([[True, True, False]])
    shape = (2, 2, 2)
    mask, position_ids = map_attention_mask(valid, *shape), map_position_ids(valid, *shape)
    total = mask.shape[-1]
    # What a token may see is transitive over the layers: the instance queries pass their points on.
    reach = mask[0, 0]
    reach = (reach.float() @ reach.float()) > 0
    torch.manual_seed(0)
    embeddings = torch.randn(1, total, 16)
    before = llm(embeddings, mask, position_ids)
    for token in range(total):
        changed = embeddings.clone()
        changed[0, token] += 1.0
        moved = (llm(changed, mask, position_ids) - before)[0].abs().amax(-1) > 1e-5
        assert torch.equal(moved, reach[:, token]), token


def test_frozen_means_frozen_but_the_gradient_passes():
    llm = build_llm(micro_config())
    llm.train()
    assert not llm.training and not llm.model.training
    assert not any(p.requires_grad for p in llm.parameters())
    embeddings = torch.randn(1, 5, 16, requires_grad=True)
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    llm(embeddings, mask, torch.arange(5)[None]).sum().backward()
    assert embeddings.grad.abs().sum() > 0


def test_a_saved_llama_is_loaded_from_its_folder(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    llama = build_random_llama(CONFIG)
    llama.save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "map": 1, "car": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path)
    llm = build_llm(micro_config(llm_path=str(tmp_path), prompt="map of a car"))
    assert llm.prompt_ids.tolist() == [1, 0, 0, 2]
    assert all(torch.equal(a, b) for a, b in zip(llm.model.parameters(), llama.parameters(), strict=True))


def test_a_path_without_a_model_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no language model could be loaded") as caught:
        build_llm(micro_config(llm_path=str(tmp_path)))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_half_precision_model_feeds_a_full_precision_decoder():
    """Vicuna is published in float16 and transformers loads it so; without autocast the decoder is float32."""
    model = build_detector(micro_config()).eval()
    model.llm.to(torch.bfloat16)
    outputs = model(random_batch(micro_config()))
    assert outputs["pred_pts"].dtype == torch.float32 and torch.isfinite(outputs["pred_pts"]).all()
