"""Posteriors over adapters of PEFT: from their files, in the model, and back into files."""

import pytest
import torch

from dswag.core.adapters import without_adapter
from dswag.core.parameters import Layout, parameters
from dswag.posterior.collectors.checkpoint_files import contents, moments_from_files
from dswag.posterior.moments import Moments

pytest.importorskip("peft", reason="needs PEFT: pip install --group integrations")
pytestmark = [pytest.mark.filterwarnings("ignore::Warning"), pytest.mark.usefixtures("one_intra_op_thread")]

import peft  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments  # noqa: E402

from dswag.posterior.collectors.transformers import PosteriorCallback  # noqa: E402

LAYERS = ["query", "value"]
KINDS = {
    "lora": peft.LoraConfig(task_type="SEQ_CLS", target_modules=LAYERS, r=4),
    "rank pattern": peft.LoraConfig(target_modules=LAYERS, r=4, rank_pattern={"query": 2}),
    "dora": peft.LoraConfig(task_type="SEQ_CLS", target_modules=LAYERS, use_dora=True),
    "embedding": peft.LoraConfig(target_modules=["word_embeddings", "query"]),
    "bias": peft.LoraConfig(target_modules=LAYERS, bias="lora_only"),
    "ia3": peft.IA3Config(target_modules=LAYERS, feedforward_modules=[]),
    "adalora": peft.AdaLoraConfig(target_modules=LAYERS, total_step=10),
    "layer norm": peft.LNTuningConfig(target_modules=["LayerNorm"]),
    "lokr": peft.LoKrConfig(target_modules=LAYERS),
    "tokens": peft.LoraConfig(target_modules=LAYERS, trainable_token_indices={"word_embeddings": [1, 2]}),
}


def base():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(
        BertConfig(vocab_size=20, max_position_embeddings=8, num_labels=3, hidden_dropout_prob=0.0, **sizes)
    ).eval()


def moved(model, number):
    """The model with other weights wherever it is trained."""
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(12).view(2, 6)).logits


@pytest.fixture(params=KINDS)
def adapted(request, tmp_path):
    """A model with adapters, and a folder with three checkpoints of them."""
    model = peft.get_peft_model(base(), KINDS[request.param])
    for number in range(3):
        moved(model, number).save_pretrained(tmp_path / f"checkpoint-{number}")
    return model, tmp_path


def of_models(model):
    """The posterior of the same weights, from the model itself."""
    moments = Moments()
    for number in range(3):
        moments.add(moved(model, number))
    return moments.posterior()


@pytest.mark.parametrize("given", [True, False])
def test_a_posterior_from_files_is_that_of_the_models(adapted, given):
    model, folder = adapted
    layout = Layout.of(model) if given else None
    found = moments_from_files(folder, layout=layout).posterior()
    expected = of_models(model)
    assert found.count == 3
    assert found.mean.numel() == expected.mean.numel()
    for number in range(2):
        with expected.sampled(model, seed=0, number=number):
            there = {name: tensor.clone() for name, tensor in model.named_parameters()}
        with found.sampled(model, seed=0, number=number):
            here = {name: tensor.clone() for name, tensor in model.named_parameters()}
        assert not given or all(torch.equal(there[name], tensor) for name, tensor in here.items())
        assert any(not torch.equal(here[name], parameter) for name, parameter in model.named_parameters())
    found.mean_into(model)
    mean = Layout.of(model).flatten(model)
    assert torch.equal(mean, expected.mean)


def test_the_mean_in_the_model_is_saved_as_an_adapter_that_loads(adapted):
    model, folder = adapted
    moments_from_files(folder).posterior().mean_into(model)
    expected = logits(model)
    model.save_pretrained(folder / "mean")
    again = peft.PeftModel.from_pretrained(base(), folder / "mean").eval()
    assert torch.equal(logits(again), expected)
    found = moments_from_files(folder, layout=Layout.of(model)).posterior()
    assert torch.equal(found.layout.flatten(model), Layout.of(model).flatten(model))


def test_names_are_those_that_peft_gives_its_files(adapted, tmp_path):
    model, _ = adapted
    model.save_pretrained(tmp_path)
    files = load_file(tmp_path / "adapter_model.safetensors")
    known = parameters(model)
    assert all(torch.equal(known[name], tensor) for name, tensor in files.items())


def test_a_posterior_fits_whatever_the_adapter_is_called(tmp_path):
    model = peft.get_peft_model(base(), KINDS["lora"])
    for number in range(2):
        moved(model, number).save_pretrained(tmp_path / f"checkpoint-{number}")
    posterior = moments_from_files(tmp_path).posterior()
    other = peft.PeftModel.from_pretrained(base(), tmp_path / "checkpoint-0", adapter_name="german", is_trainable=True)
    other.load_adapter(tmp_path / "checkpoint-1", adapter_name="french")
    before = {name: parameter.clone() for name, parameter in other.named_parameters()}
    posterior.mean_into(other)
    changed = {name for name, parameter in other.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(Layout.of(other).names)
    assert all("german" in name for name in changed)
    other.set_adapter("french")
    posterior.mean_into(other)
    assert torch.equal(posterior.layout.flatten(other), posterior.mean)
    assert any("french" in n for n, p in other.named_parameters() if not torch.equal(p, before[n]))


def test_merged_adapters_are_refused(tmp_path):
    """What is written to them then has no effect on what the model computes."""
    model = peft.get_peft_model(base(), KINDS["lora"])
    posterior = of_models(model)
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"adapters of .*query are merged .* call unmerge_adapter\(\) first"):
        posterior.mean_into(model)
    model.unmerge_adapter()
    posterior.mean_into(model)
    with pytest.raises(ValueError, match=r"parameters .*lora_A.* are missing"):
        posterior.mean_into(model.merge_and_unload())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.lora_A.mine.weight", "a.lora_A.weight"),
        ("a.lora_embedding_A.mine", "a.lora_embedding_A"),
        ("a.lora_magnitude_vector.mine.weight", "a.lora_magnitude_vector"),
        ("head.modules_to_save.mine.dense.weight", "head.dense.weight"),
        ("mine.base_layer.weight", "mine.base_layer.weight"),
        ("head.original_module.dense.weight", "head.original_module.dense.weight"),
    ],
)
def test_the_adapter_s_name_is_left_out_where_it_is_one(name, expected):
    assert without_adapter(name, "mine") == expected


def test_half_precision_beneath_adapters_and_a_head_in_it_are_trained_on(tmp_path):
    """PEFT keeps adapters in float32, and what `modules_to_save` names in the model's own type."""
    model = peft.get_peft_model(base().bfloat16(), KINDS["lora"])
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {
        torch.float32,
        torch.bfloat16,
    }
    examples = [{"input_ids": torch.arange(6) + n % 3, "labels": torch.tensor(n % 3)} for n in range(8)]
    arguments = TrainingArguments(
        output_dir=tmp_path, use_cpu=True, num_train_epochs=3, report_to=[], disable_tqdm=True, save_strategy="epoch"
    )
    callback = PosteriorCallback()
    Trainer(model, arguments, train_dataset=examples, callbacks=[callback]).train()
    posterior = callback.posterior
    assert (posterior.count, posterior.mean.dtype) == (3, torch.float32)
    files = moments_from_files(tmp_path, layout=Layout.of(model)).posterior()
    assert torch.equal(files.mean, posterior.mean)
    assert contents(tmp_path).files == tuple(
        tmp_path / f"checkpoint-{number}" / "adapter_model.safetensors" for number in (1, 2, 3)
    )
