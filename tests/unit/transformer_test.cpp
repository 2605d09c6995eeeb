// The language model against the tiny model's known answers and against a forward pass in double.
#include "lm/transformer.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <numeric>

#include "clt/base/error.hpp"
#include "clt/io/file.hpp"
#include "support/random_gpt2.hpp"
#include "support/scratch.hpp"

namespace clt {
namespace {

using test::Gpt2Oracle;
using test::message_of;
using test::OraclePass;
using test::RandomGpt2;
using test::Scratch;
using Ids = std::vector<std::int32_t>;

const std::string tiny_folder = CLT_SOURCE_DIR "/examples/tiny-gpt2";

// All taps and the logits of one pass, in host memory.
struct HostPass {
    std::vector<float> residual, mlp_input, mlp_output;  // [T, L, d]
    std::vector<float> logits;                           // [T, V]
};

HostPass run(Backend& backend, Transformer& model, const SequenceBatch& batch) {
    const TransformerConfig& c = model.config();
    const Index tokens = batch.tokens();
    const Index width = c.layers * c.d_model;
    const auto buffer = [&](Index n) { return Buffer<float>(backend.memory(), n, Purpose::batch); };
    Buffer<float> residual = buffer(tokens * width);
    Buffer<float> input = buffer(tokens * width);
    Buffer<float> output = buffer(tokens * width);
    Buffer<float> logits = buffer(tokens * c.vocabulary);
    const auto tap = [&](Buffer<float>& b) {
        return Tap{Matrix<float>(b.span(), tokens, width), c.d_model};
    };
    model.forward(batch, {tap(residual), tap(input), tap(output)});
    model.logits({0, tokens}, Matrix<float>(logits.span(), tokens, c.vocabulary));
    HostPass pass;
    const auto fetch = [&](Buffer<float>& b, std::vector<float>& host) {
        host.resize(static_cast<std::size_t>(b.size()));
        backend.download(Span<const float>(b.span()), std::span<float>(host));
    };
    fetch(residual, pass.residual);
    fetch(input, pass.mlp_input);
    fetch(output, pass.mlp_output);
    fetch(logits, pass.logits);
    return pass;
}

Ids random_ids(Index n, Index vocabulary, unsigned seed) {
    std::mt19937 generator(seed);
    std::uniform_int_distribution<std::int32_t> id(0, static_cast<std::int32_t>(vocabulary - 1));
    Ids ids(static_cast<std::size_t>(n));
    for (auto& value : ids) value = id(generator);
    return ids;
}

// The passes are some 10 products of length d deep, values of order 1 to 10: 2e-4 is about 10 steps
// of eps * sqrt(d) * 10, doubled; a wrong formula is off by 1e-2 and more.
constexpr double pass_tolerance = 2e-4;

void expect_equals(const HostPass& got, Index first_token, const OraclePass& expected,
                   const TransformerConfig& c) {
    const auto tokens = expected.logits.size();
    const auto layers = static_cast<std::size_t>(c.layers);
    const auto d = static_cast<std::size_t>(c.d_model);
    double worst = 0;
    const auto compare = [&](float value, double wanted) {
        const double error = std::abs(static_cast<double>(value) - wanted);
        if (!(error <= worst)) worst = error;
    };
    for (std::size_t t = 0; t < tokens; ++t) {
        const std::size_t row = static_cast<std::size_t>(first_token) + t;
        for (std::size_t l = 0; l < layers; ++l)
            for (std::size_t k = 0; k < d; ++k) {
                const std::size_t at = (row * layers + l) * d + k;
                compare(got.residual[at], expected.residual[l][t][k]);
                compare(got.mlp_input[at], expected.mlp_input[l][t][k]);
                compare(got.mlp_output[at], expected.mlp_output[l][t][k]);
            }
        const auto vocabulary = static_cast<std::size_t>(c.vocabulary);
        for (std::size_t v = 0; v < vocabulary; ++v)
            compare(got.logits[row * vocabulary + v], expected.logits[t][v]);
    }
    EXPECT_TRUE(worst <= pass_tolerance) << "largest difference " << worst;
}

TEST(Transformer, TinyModelGivesTheExpectedLossAndEveryArgmax) {
    const auto backend = make_backend("cpu", Communicator::world());
    Transformer model(tiny_folder, *backend);
    const auto expected = nlohmann::json::parse(read_file(tiny_folder + "/expected.json"));
    SequenceBatch batch;
    batch.add(expected["probe_ids"].get<Ids>());
    model.forward(batch, {});
    const Predictions got = model.predict();
    const auto argmax = expected["probe_argmax"].get<Ids>();
    ASSERT_EQ(argmax.size(), got.argmax.size());
    EXPECT_EQ(got.argmax, argmax);
    const double loss = std::accumulate(got.loss.begin(), got.loss.end(), 0.0) /
                        static_cast<double>(batch.tokens() - 1);
    EXPECT_NEAR(loss, expected["probe_mean_loss"].get<double>(), 1e-4);
    EXPECT_NEAR(static_cast<double>(got.logsumexp.back()),
                expected["probe_logsumexp_last"].get<double>(), 1e-4);
    EXPECT_EQ(got.loss.back(), 0);
}

TEST(Transformer, EveryTapAndLogitMatchesTheOracle) {
    const auto backend = make_backend("cpu", Communicator::world());
    struct Heads {
        Index d, heads;
    };
    // Head widths 8, 80, 48 and 17: every tile of the attention kernel and its padding.
    for (const auto& [d, heads] : {Heads{24, 3}, Heads{80, 1}, Heads{96, 2}, Heads{34, 2}})
        for (const char* activation : {"gelu_new", "gelu", "relu"}) {
            const Scratch folder;
            RandomGpt2 random;
            random.d = d;
            random.heads = heads;
            random.activation = activation;
            random.tied = activation != std::string("gelu");
            random.fill(7);
            random.write(folder.path());
            Transformer model(folder.path(), *backend);
            EXPECT_EQ(model.config().tied_unembedding, random.tied);
            SequenceBatch batch;
            const Ids ids = random_ids(80, random.vocabulary, 3);
            batch.add(ids);
            expect_equals(run(*backend, model, batch), 0, Gpt2Oracle(random).run(ids),
                          model.config());
        }
}

TEST(Transformer, ASequenceDoesNotSeeTheOthersOfItsBatch) {
    const auto backend = make_backend("cpu", Communicator::world());
    const Scratch folder;
    RandomGpt2 random;
    random.fill(11);
    random.write(folder.path());
    Transformer model(folder.path(), *backend);
    std::vector<Ids> sequences;
    SequenceBatch batch;
    // Around the blocks of 32 queries and 64 keys, and an empty one.
    for (const Index length : {1, 2, 31, 0, 32, 33, 63, 64, 65, 80}) {
        sequences.push_back(random_ids(length, random.vocabulary, static_cast<unsigned>(length)));
        batch.add(sequences.back());
    }
    const HostPass pass = run(*backend, model, batch);
    for (std::size_t s = 0; s < sequences.size(); ++s)
        expect_equals(pass, batch.starts[s], Gpt2Oracle(random).run(sequences[s]), model.config());
}

TEST(Transformer, TapsDoNotChangeTheResult) {
    const auto backend = make_backend("cpu", Communicator::world());
    Transformer model(tiny_folder, *backend);
    SequenceBatch batch;
    batch.add(random_ids(100, model.config().vocabulary, 5));
    run(*backend, model, batch);
    const Predictions with = model.predict();
    model.forward(batch, {});
    EXPECT_EQ(model.predict().logsumexp, with.logsumexp);
}

TEST(Transformer, ReadsHalfPrecisionPrefixesAndShards) {
    const auto backend = make_backend("cpu", Communicator::world());
    for (const DType type : {DType::float16, DType::bfloat16}) {
        const Scratch folder;
        RandomGpt2 random;
        random.tied = false;
        random.fill(13);
        write_file(folder / "config.json", random.config().dump());
        // As GPT2LMHeadModel saves: everything but the head has the prefix.
        test::HostTensors first;
        test::HostTensors second;
        nlohmann::json map;
        for (const auto& [name, tensor] : random.tensors) {
            const bool head = name == "lm_head.weight";
            const bool early = name < "h.1";
            const std::string full = (head ? "" : "transformer.") + name;
            (early ? first : second)[full] = tensor;
            map[full] = early ? "model-1.safetensors" : "model-2.safetensors";
        }
        test::write_safetensors(folder / "model-1.safetensors", first, type);
        test::write_safetensors(folder / "model-2.safetensors", second, type);
        write_file(folder / "model.safetensors.index.json",
                   nlohmann::json{{"weight_map", map}}.dump());
        // The oracle gets the rounded weights, so the tolerance stays.
        for (auto* part : {&first, &second})
            for (const auto& [name, tensor] : *part)
                random.tensors[name.starts_with("transformer.") ? name.substr(12) : name] = tensor;
        Transformer model(folder.path(), *backend);
        SequenceBatch batch;
        const Ids ids = random_ids(40, random.vocabulary, 17);
        batch.add(ids);
        expect_equals(run(*backend, model, batch), 0, Gpt2Oracle(random).run(ids), model.config());
    }
}

TEST(Transformer, RefusesBrokenFoldersInOneSentence) {
    const auto backend = make_backend("cpu", Communicator::world());
    RandomGpt2 good;
    good.fill(1);
    const auto refusal = [&](const std::function<void(RandomGpt2&, nlohmann::json&)>& change,
                             const std::function<void(const std::string&)>& damage = {}) {
        const Scratch folder;
        RandomGpt2 model = good;
        nlohmann::json config = model.config();
        change(model, config);
        write_file(folder / "config.json", config.dump());
        test::write_safetensors(folder / "model.safetensors", model.tensors, DType::float32);
        if (damage) damage(folder.path());
        std::string message = message_of<UserError>([&] { Transformer(folder.path(), *backend); });
        const std::size_t at = message.find(folder.path() + "/");
        EXPECT_NE(at, std::string::npos) << message;
        return at == std::string::npos ? message : message.erase(at, folder.path().size() + 1);
    };
    const auto nothing = [](RandomGpt2&, nlohmann::json&) {};
    using nlohmann::json;
    EXPECT_EQ(refusal([](RandomGpt2& m, json&) { m.tensors.erase("h.1.mlp.c_fc.bias"); }),
              "model.safetensors: tensor \"h.1.mlp.c_fc.bias\" is missing");
    EXPECT_EQ(refusal([](RandomGpt2& m, json&) { m.tensors.erase("wte.weight"); }),
              "model.safetensors: tensor \"wte.weight\" is missing");
    EXPECT_EQ(refusal([](RandomGpt2&, json& c) { c["n_inner"] = 41; }),
              "model.safetensors: tensor \"h.0.mlp.c_fc.weight\" has the shape [24, 40], expected "
              "[24, 41] by config.json");
    EXPECT_EQ(refusal([](RandomGpt2&, json& c) { c["model_type"] = "bert"; }),
              "config.json: model_type \"bert\" is not supported, expected one of: gpt2");
    EXPECT_EQ(refusal([](RandomGpt2&, json& c) { c.erase("n_layer"); }),
              "config.json: n_layer is missing, expected a whole number");
    EXPECT_EQ(refusal([](RandomGpt2&, json& c) { c["n_head"] = 5; }),
              "config.json: \"n_embd\" = 24 is not a multiple of \"n_head\" = 5");
    EXPECT_EQ(refusal([](RandomGpt2&, json& c) { c["activation_function"] = "silu"; }),
              "config.json: \"activation_function\" is \"silu\", expected gelu_new, "
              "gelu_pytorch_tanh, gelu or relu");
    EXPECT_EQ(refusal([](RandomGpt2&, json& c) { c["scale_attn_weights"] = false; }),
              "config.json: scale_attn_weights = false, expected true: the rest is not supported");
    EXPECT_EQ(refusal([](RandomGpt2&, json& c) { c["n_layer"] = 1e300; }),
              "config.json: n_layer = 1e+300, expected a whole number from 1");
    const std::string cut = refusal(nothing, [](const std::string& folder) {
        const std::string file = folder + "/model.safetensors";
        std::filesystem::resize_file(file, std::filesystem::file_size(file) - 1);
    });
    EXPECT_TRUE(cut.starts_with("model.safetensors: ")) << cut;
    const std::string none = refusal(nothing, [](const std::string& folder) {
        std::filesystem::remove(folder + "/model.safetensors");
    });
    EXPECT_TRUE(none.starts_with("model.safetensors: ")) << none;

    Transformer model(tiny_folder, *backend);
    SequenceBatch batch;
    batch.add(Ids{1, 2048});
    EXPECT_EQ(message_of<UserError>([&] { model.forward(batch, {}); }),
              "token id 2048 is not in the model's vocabulary of 2048");
    batch.clear();
    batch.add(Ids(257, 1));
    EXPECT_EQ(message_of<UserError>([&] { model.forward(batch, {}); }),
              "a sequence of 257 tokens is longer than the model's 256 positions");
}

}  // namespace
}  // namespace clt
