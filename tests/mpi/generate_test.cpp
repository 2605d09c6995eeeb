// A generate job on any number of ranks: the same data set, the right rows, and the same files
// after a stop.
#include "clt/lm/generate.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "clt/base/error.hpp"
#include "clt/data/dataset.hpp"
#include "clt/io/file.hpp"
#include "lm/tokenizer.hpp"
#include "lm/transformer.hpp"
#include "support/scratch.hpp"
#include "support/test_backend.hpp"

namespace clt {
namespace {

using test::message_of;
using test::Scratch;
using Ids = std::vector<std::int32_t>;

const std::string model_folder = CLT_SOURCE_DIR "/examples/tiny-gpt2";
constexpr Index width = 2 * 4 * 128;  // floats of a row: layers, input and target, d_model

class Generate : public testing::Test {
  protected:
    Generate() {
        if (world_.rank() == 0) {
            const std::string text = read_file(model_folder + "/heldout.txt");
            write_file(scratch_ / "a.txt", text.substr(0, 3000));
            std::string lines;
            for (std::size_t i = 0; i < 40; ++i)
                lines += nlohmann::json{{"text", text.substr(5000 + 100 * i, 7 * i)}}.dump() + "\n";
            write_file(scratch_ / "b.jsonl", lines);
        }
        world_.barrier();
    }

    GenerateJob job(const std::string& output) const {
        GenerateJob job;
        job.job.output = scratch_ / output;
        job.job.seed = 7;
        job.model.path = model_folder;
        job.text.files = {scratch_ / "a.txt", scratch_ / "b.jsonl"};
        job.data.context_size = 32;
        job.data.batch_tokens = 100;
        job.data.chunk_tokens = 450;
        job.data.target_tokens = 1500;
        return job;
    }

    // All rows of a data set, chunk by chunk, in the storage type's bytes.
    std::vector<std::vector<std::byte>> chunks(const std::string& path,
                                               const Communicator& communicator) const {
        const ActivationDataset dataset(path, communicator);
        std::vector<std::vector<std::byte>> all;
        for (std::size_t i = 0; i < dataset.chunks().size(); ++i)
            dataset.read(i, {0, dataset.chunks()[i].rows}, all.emplace_back(), communicator);
        return all;
    }

    Communicator world_ = Communicator::world();
    Communicator alone_ = world_.split(world_.rank(), 0);
    Scratch scratch_{world_};
    std::unique_ptr<Backend> backend_ = test::make_test_backend(world_);
};

// The rows as the job should have them, computed sequence by sequence.
std::vector<std::vector<float>> expected_rows(const GenerateJob& job, Backend& backend) {
    Tokenizer tokenizer(model_folder + "/tokenizer.json");
    Transformer model(model_folder, backend);
    std::vector<std::string> documents{read_file(job.text.files[0])};
    const std::string lines = read_file(job.text.files[1]);
    for (std::size_t at = 0; at < lines.size();) {
        const std::size_t end = lines.find('\n', at);
        const auto text = nlohmann::json::parse(lines.substr(at, end - at))["text"];
        documents.push_back(text.get<std::string>());
        at = end + 1;
    }
    std::vector<std::vector<float>> rows;
    for (const std::string& document : documents) {
        const Ids ids = tokenizer.encode(document);
        const auto run = static_cast<std::size_t>(job.data.context_size - 1);
        for (std::size_t at = 0; at < ids.size(); at += run) {
            Ids piece{0};
            piece.insert(piece.end(), ids.begin() + static_cast<std::ptrdiff_t>(at),
                         ids.begin() + static_cast<std::ptrdiff_t>(std::min(ids.size(), at + run)));
            SequenceBatch batch;
            batch.add(piece);
            const Index tokens = batch.tokens();
            Buffer<float> values(backend.memory(), 2 * tokens * width / 2, Purpose::batch);
            const Span<float> all = values.span();
            Taps taps;
            taps.mlp_input = {Matrix<float>(all.subspan(0, tokens * width / 2), tokens, width / 2),
                              128};
            taps.mlp_output = {Matrix<float>(all.subspan(tokens * width / 2, tokens * width / 2),
                                             tokens, width / 2),
                               128};
            model.forward(batch, taps);
            std::vector<float> host(static_cast<std::size_t>(tokens * width));
            backend.download(Span<const float>(all), std::span<float>(host));
            for (Index t = 1; t < tokens; ++t) {  // the BOS is special
                std::vector<float>& row = rows.emplace_back();
                for (Index part = 0; part < 8; ++part) {
                    const float* const from = host.data() + (part % 2) * tokens * width / 2 +
                                              t * width / 2 + part / 2 * 128;
                    row.insert(row.end(), from, from + 128);
                }
            }
        }
    }
    return rows;
}

double distance(const float* a, const std::vector<float>& b) {
    double worst = 0;
    for (std::size_t i = 0; i < b.size(); ++i)
        worst = std::max(worst, static_cast<double>(std::abs(a[i] - b[i])));
    return worst;
}

TEST_F(Generate, EveryChunkHoldsItsPartOfTheTextShuffled) {
    const GenerateJob generate_job = job("data");
    const GenerateResult result = generate(generate_job, *backend_, world_);
    EXPECT_TRUE(result.finished);
    EXPECT_EQ(result.tokens, 1500);
    const auto stored = chunks(generate_job.job.output, world_);
    ASSERT_EQ(stored.size(), 4U);
    const auto expected = expected_rows(generate_job, *backend_);
    ASSERT_GE(expected.size(), 1500U);
    std::size_t first = 0;
    for (const auto& chunk : stored) {
        std::vector<float> values(chunk.size() / sizeof(float));
        std::memcpy(values.data(), chunk.data(), chunk.size());
        const std::size_t rows = values.size() / width;
        EXPECT_EQ(rows, first < 1350 ? 450U : 150U);
        std::vector<bool> seen(rows, false);
        std::size_t in_place = 0;
        for (std::size_t r = 0; r < rows; ++r) {
            const float* const stored_row = values.data() + r * width;
            std::size_t match = rows;
            for (std::size_t e = 0; e < rows && match == rows; ++e)
                if (!seen[e] && distance(stored_row, expected[first + e]) < 1e-3) match = e;
            ASSERT_LT(match, rows) << "row " << r << " is none of the chunk's tokens";
            seen[match] = true;
            in_place += match == r ? 1 : 0;
        }
        EXPECT_LT(in_place, rows / 10) << "not shuffled";
        first += rows;
    }
}

TEST_F(Generate, TheDataSetDoesNotDependOnTheNumberOfRanks) {
    for (const char* tap : {"mlp_input", "residual"}) {
        GenerateJob shared = job(std::string("shared_") + tap);
        shared.model.tap = tap;
        shared.data.dtype = "bfloat16";
        generate(shared, *backend_, world_);
        GenerateJob own = job(fmt::format("own_{}_{}", tap, world_.rank()));
        own.model.tap = tap;
        own.data.dtype = "bfloat16";
        generate(own, *backend_, alone_);
        world_.barrier();
        EXPECT_EQ(chunks(shared.job.output, world_), chunks(own.job.output, alone_));
        EXPECT_EQ(read_file(shared.job.output + "/index.bin"),
                  read_file(own.job.output + "/index.bin"));
    }
}

TEST_F(Generate, AStoppedJobGoesOnToTheSameFiles) {
    const GenerateJob whole = job("whole");
    generate(whole, *backend_, world_);
    const GenerateJob stopped = job("stopped");
    for (const Index tokens : {900, 1350}) {  // after two chunks, then after one more
        const std::string last =
            stopped.job.output + (tokens == 900 ? "/chunk_1.hdf5" : "/chunk_2.hdf5");
        const GenerateResult result =
            generate(stopped, *backend_, world_, [&] { return std::filesystem::exists(last); });
        EXPECT_FALSE(result.finished);
        EXPECT_EQ(result.tokens, tokens);
    }
    EXPECT_TRUE(generate(stopped, *backend_, world_).finished);
    world_.barrier();
    EXPECT_EQ(chunks(stopped.job.output, world_), chunks(whole.job.output, world_));
    for (const char* file : {"/index.bin", "/norm_stats.json"})
        EXPECT_EQ(read_file(stopped.job.output + file), read_file(whole.job.output + file));
    // Once more changes nothing; another text is refused.
    EXPECT_TRUE(generate(stopped, *backend_, world_).finished);
    GenerateJob other = stopped;
    other.text.files.pop_back();
    EXPECT_NE(message_of<UserError>([&] {
                  generate(other, *backend_, world_);
              }).find("already holds activations made with"),
              std::string::npos);
}

// Between two legs of a job nothing that the rows depend on may change, also where name and size
// stay; each rank reads a part of the bytes.
TEST_F(Generate, ChangedContentIsRefusedAndNamed) {
    const std::string folder = scratch_ / "model";
    GenerateJob stopped = job("changed");
    stopped.model.path = folder;
    world_.together([&] {
        if (world_.rank() != 0) return;
        make_writable_folder(folder);
        for (const char* file : {"/config.json", "/tokenizer.json", "/model.safetensors"})
            write_file(folder + file, read_file(model_folder + file));
    });
    Index chunk = 0;  // the leg ends behind it
    const auto leg = [&] {
        const std::string last = fmt::format("{}/chunk_{}.hdf5", stopped.job.output, chunk);
        return generate(stopped, *backend_, world_, [&] { return std::filesystem::exists(last); });
    };
    const auto replace = [&](const std::string& path, const std::string& bytes) {
        world_.barrier();
        if (world_.rank() == 0) write_file(path, bytes);
        world_.barrier();
    };
    EXPECT_EQ(leg().tokens, 450);
    const std::string whole = read_file(folder + "/model.safetensors");
    std::string other = whole;
    other[whole.size() - 3] = static_cast<char>(other[whole.size() - 3] ^ 1);
    replace(folder + "/model.safetensors", other);
    EXPECT_NE(
        message_of<UserError>(leg).find("made with weights \"model.safetensors\" content = \""),
        std::string::npos);
    replace(folder + "/model.safetensors", whole);
    const std::string text = read_file(scratch_ / "a.txt");
    std::string edited = text;
    std::swap(edited[100], edited[101]);
    edited[102] = 'x';
    replace(scratch_ / "a.txt", edited);
    EXPECT_NE(message_of<UserError>(leg).find("made with text_files \"a.txt\" content = \""),
              std::string::npos);
    replace(scratch_ / "a.txt", text);
    chunk = 1;
    EXPECT_EQ(leg().tokens, 900);
}

TEST_F(Generate, ShortTextGivesWhatThereIs) {
    GenerateJob short_job = job("short");
    short_job.text.files = {scratch_ / "a.txt"};
    short_job.data.target_tokens = 0;
    short_job.data.exclude_special_tokens = false;
    short_job.data.context_size = 256;
    const GenerateResult result = generate(short_job, *backend_, world_);
    Tokenizer tokenizer(model_folder + "/tokenizer.json");
    const auto ids = static_cast<Index>(tokenizer.encode(read_file(scratch_ / "a.txt")).size());
    EXPECT_EQ(result.tokens,
              ids + (ids + 254) / 255);  // the BOS of every piece takes one of 256 places
    const auto metadata = nlohmann::json::parse(read_file(short_job.job.output + "/metadata.json"));
    EXPECT_EQ(metadata["total_tokens"], result.tokens);
    EXPECT_EQ(metadata["model_name"], "tiny-gpt2");
    EXPECT_EQ(metadata["dataset"], "a.txt");
    EXPECT_EQ(metadata["context_size"], 256);
}

TEST_F(Generate, RefusesInOneSentenceOnEveryRank) {
    const auto refusal = [&](const std::function<void(GenerateJob&)>& change) {
        GenerateJob bad = job("refused");
        change(bad);
        return message_of<UserError>([&] { generate(bad, *backend_, world_); });
    };
    EXPECT_EQ(refusal([&](GenerateJob& j) { j.text.files = {scratch_ / "none.txt"}; }),
              (scratch_ / "none.txt") + ": no such file (text.files)");
    EXPECT_EQ(refusal([&](GenerateJob& j) {
                  j.text.files = {scratch_ / "b.jsonl"};
                  j.text.column = "body";
              }),
              (scratch_ / "b.jsonl") +
                  ":1: there is no key \"body\" (text.column); the keys are: \"text\"");
    EXPECT_EQ(refusal([](GenerateJob& j) { j.data.context_size = 257; }),
              "data.context_size = 257 is more than the model's 256 positions");
    EXPECT_NE(refusal([](GenerateJob& j) { j.model.path += "-none"; }).find("config.json"),
              std::string::npos);
    const std::string empty = scratch_ / "empty.txt";
    if (world_.rank() == 0) write_file(empty, " \n");
    world_.barrier();
    EXPECT_EQ(refusal([&](GenerateJob& j) {
                  j.job.output = scratch_ / "empty";
                  j.text.files = {empty};
              }),
              "text.files have no text: nothing to write");
    const std::string ids = scratch_ / "ids.bin";
    if (world_.rank() == 0) write_file(ids, std::string("\x01\x00\x00\x08", 4));
    world_.barrier();
    EXPECT_EQ(refusal([&](GenerateJob& j) {
                  j.job.output = scratch_ / "ids";
                  j.text.files = {ids};
              }),
              ids + ": id 2048 at place 1 is not in the model's vocabulary of 2048");
}

}  // namespace
}  // namespace clt
