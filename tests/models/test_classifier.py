"""The classifier: encoder, fusion and head, in any combination and any company."""

from __future__ import annotations

import pytest
import torch

from cedilla.dna.tokenizer import Tokenizer
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.cnn import CNNConfig, DilatedCNN
from cedilla.models.heads import ClassificationHead, pool
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer

SEQUENCES = ["ACGTAC" * 12, "TTGACATT", "NNACG", ""]
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 75,
    "max_position_embeddings": 66,
}
ENCODERS = {
    "v1": lambda: NucleotideTransformer(
        NTConfig(**SHAPE | {"vocab_size": 73}, position_embedding_type="absolute")
    ),
    "v2": lambda: NucleotideTransformer(NTConfig(**SHAPE)),
    "cnn": lambda: DilatedCNN(CNNConfig(hidden_size=16, num_hidden_layers=2)),
}


def classifier(kind="v2", outputs=3, **options):
    torch.manual_seed(0)
    return SequenceClassifier(ENCODERS[kind](), outputs, **options).eval()


def encoded(model, sequences=SEQUENCES):
    return Tokenizer.for_model(model.encoder).encode(sequences)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_the_company_of_a_sequence_changes_nothing(kind, pooling):
    model = classifier(kind, features=2, pooling=pooling)
    model.fusion.project.normal_()
    features = torch.tensor([[0.1, 0.5], [float("nan"), 1.0], [0.3, float("nan")], [0.0, 0.0]])
    together = model(*encoded(model), features)
    assert together.shape == (4, 3)
    assert together.isfinite().all()
    for row, sequence in enumerate(SEQUENCES):
        alone = model(*encoded(model, [sequence]), features[row : row + 1])
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=2e-6)


def test_pooling_takes_the_first_token_or_the_mean_of_the_others():
    hidden = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert torch.equal(pool(hidden, mask, "cls"), hidden[:, 0])
    mean = pool(hidden, mask, "mean")
    assert torch.equal(mean[0], (hidden[0, 1] + hidden[0, 2]) / 2)
    assert torch.equal(mean[1], torch.zeros(3))  # a sequence of no bases
    assert mask[0, 0]  # the caller's mask is left alone


@torch.no_grad()
def test_a_fused_model_starts_as_the_sequence_model():
    """The same draw of weights with and without a fusion, and the same logits bit for bit."""
    plain, fused = classifier(), classifier(features=2)
    features = torch.rand(4, 2)
    assert torch.equal(plain(*encoded(plain)), fused(*encoded(fused), features))
    assert plain.fusion is None


def test_gradients_reach_encoder_fusion_and_head():
    model = classifier(features=2)
    for _ in range(2):  # in the first step, the fusion's last layer is zero
        model.zero_grad()
        model(*encoded(model), torch.rand(4, 2)).pow(2).sum().backward()
        with torch.no_grad():
            model.fusion.project -= 0.1 * model.fusion.project.grad
    idle = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # The output layer of pre-training has no part; a key's bias cancels in the softmax.
    assert {n for n in idle if "lm_head" not in n and "key.bias" not in n} == set()


def test_features_are_not_needed_by_a_fused_model():
    model = classifier(features=1)
    nothing = torch.full((4, 1), float("nan"))
    assert torch.equal(model(*encoded(model)), model(*encoded(model), nothing))


def test_dropout_acts_in_training_alone():
    head = ClassificationHead(8, 2, dropout=0.5)
    x = torch.randn(4, 8)
    assert not torch.equal(head.train()(x), head(x))
    assert torch.equal(head.eval()(x), head(x))
