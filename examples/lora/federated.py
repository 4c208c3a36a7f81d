"""Ten clients fine-tune one adapter of a small transformer; the posterior is over the adapter alone.

Nothing is downloaded: the transformer is built from a config and learns a made-up language first, of which the clients
speak a dialect. `python federated.py adapter` takes half a minute, and writes the adapter with the mean weights, its
posterior, and an adapter for each explorer.
"""

import sys
from pathlib import Path

import peft
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification

import dswag
from dswag.evaluation.metrics import score

TOPICS, WORDS, LENGTH = 4, 60, 12
CLIENTS, EXAMPLES = 10, 40


class Texts(Dataset[dict[str, Tensor]]):
    """Texts of random words, a third of them typical of a text's topic; in the dialect, words have other meanings."""

    def __init__(self, number: int, *, seed: int, dialect: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.topics = torch.randint(TOPICS, (number,), generator=generator)
        typical = torch.randint(WORDS // TOPICS, (number, LENGTH), generator=generator) * TOPICS + self.topics[:, None]
        others = torch.randint(WORDS, (number, LENGTH), generator=generator)
        self.words = torch.where(torch.rand(number, LENGTH, generator=generator) < 1 / 3, typical, others)
        if dialect:
            self.words = torch.randperm(WORDS, generator=torch.Generator().manual_seed(1))[self.words]

    def __len__(self) -> int:
        return len(self.topics)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"input_ids": self.words[row], "labels": self.topics[row]}


def pretrained(steps: int = 300) -> BertForSequenceClassification:
    """A transformer that understands the language, but not the dialect."""
    torch.manual_seed(0)  # noqa: TID251 - transformers take no generator
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    transformer = BertForSequenceClassification(
        BertConfig(vocab_size=WORDS, max_position_embeddings=LENGTH, num_labels=TOPICS, **sizes, **dropout)
    )
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=2e-3)
    for step in range(steps):
        batch = Texts(64, seed=step, dialect=False)
        optimizer.zero_grad()
        transformer(input_ids=batch.words, labels=batch.topics).loss.backward()
        optimizer.step()
    return transformer


def with_adapter(transformer: nn.Module) -> peft.PeftModel:
    """The transformer frozen, but for an adapter of rank 4 and the layer that classifies."""
    targets = ["word_embeddings", "query", "value"]
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=targets)
    return peft.get_peft_model(transformer, config)


def main(folder: Path, rounds: int = 20) -> dict[str, dict[str, float]]:
    """Trains, predicts and saves; returns the scores of the mean and of the posterior."""
    model = with_adapter(pretrained())
    clients = [Texts(EXAMPLES, seed=1000 + number, dialect=True) for number in range(CLIENTS)]
    config = dswag.Config(clients=CLIENTS, rounds=rounds, optimizer="adamw", learning_rate=5e-3, batch_size=20)
    run = dswag.train(model, clients, config)
    print(f"{run.posterior.layout.d:,} of {sum(p.numel() for p in model.parameters()):,} weights have a posterior")

    test = Texts(2000, seed=0, dialect=True)
    found = {"phase 1": dswag.ensemble(model, run.theta[None], test).probabilities}
    found["posterior"] = dswag.predict(model, run.posterior, test, samples=20, seed=0)
    scores = {name: score(probabilities, test.topics) for name, probabilities in found.items()}
    for name, result in scores.items():
        print(f"{name}: {result}")

    run.posterior.save(folder / "posterior.safetensors")
    run.posterior.mean_into(model)
    model.save_pretrained(folder / "mean")  # an adapter like any other
    for number in range(3):
        with run.posterior.sampled(model, seed=0, number=number):
            model.save_pretrained(folder / f"draw-{number}")
    return scores


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "adapter"))
