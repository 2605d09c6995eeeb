#include "clt/lm/generate.hpp"

#include <algorithm>
#include <deque>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "clt/base/checksum.hpp"
#include "clt/base/log.hpp"
#include "clt/base/progress.hpp"
#include "clt/base/stopwatch.hpp"
#include "clt/base/utf8.hpp"
#include "clt/data/writer.hpp"
#include "clt/io/file.hpp"
#include "lm/model_description.hpp"
#include "lm/tensor_files.hpp"
#include "lm/text_stream.hpp"
#include "lm/token_stream.hpp"
#include "lm/tokenizer.hpp"
#include "lm/transformer.hpp"

namespace clt {
namespace {

constexpr double progress_interval_s = 5;
constexpr const char* begin_key = "bos_token_id";
constexpr const char* end_key = "eos_token_id";

// For metadata.json, which is UTF-8 whatever the file system holds.
std::string file_name(const std::string& path) {
    const auto normal = std::filesystem::path(path).lexically_normal();
    return repair_utf8((normal.has_filename() ? normal : normal.parent_path()).filename().string());
}

// The token before every sequence.
std::optional<std::int32_t> begin_token(const GenerateJob& job, const TransformerConfig& model) {
    if (!job.data.prepend_bos) return std::nullopt;
    const std::vector<Index> ids = read_token_ids(job.model.path, begin_key);
    if (ids.size() != 1)
        user_error(
            "{}/config.json: {} {}, but data.prepend_bos = true needs one: set data.prepend_bos to "
            "false",
            job.model.path, begin_key, ids.empty() ? "is missing" : "is a list");
    if (ids[0] < 0 || ids[0] >= model.vocabulary)
        user_error(
            "{}/config.json: {} = {} is not in the vocabulary of {} tokens, but data.prepend_bos = "
            "true needs it: set data.prepend_bos to false",
            job.model.path, begin_key, ids[0], model.vocabulary);
    return static_cast<std::int32_t>(ids[0]);
}

// The ids whose rows are not written. Ids beyond the vocabulary cannot occur.
std::vector<bool> excluded_ids(const GenerateJob& job, const TransformerConfig& model,
                               const Tokenizer* tokenizer) {
    std::vector<bool> excluded(static_cast<std::size_t>(model.vocabulary), false);
    if (!job.data.exclude_special_tokens) return excluded;
    for (const char* key : {begin_key, end_key})
        for (const Index id : read_token_ids(job.model.path, key))
            if (id >= 0 && id < model.vocabulary) excluded[static_cast<std::size_t>(id)] = true;
    if (tokenizer != nullptr)
        for (const std::int32_t id : tokenizer->special_ids())
            if (id < model.vocabulary) excluded[static_cast<std::size_t>(id)] = true;
    return excluded;
}

void check_job(const GenerateJob& job, const TransformerConfig& model) {
    if (job.text.files.empty()) user_error("text.files is empty, expected at least one file");
    for (const std::string& file : job.text.files) {
        text_format(file);
        if (!path_exists(file)) user_error("{}: no such file (text.files)", file);
    }
    check_encoding(job.text.encoding);
    if (job.data.context_size > model.positions)
        user_error("data.context_size = {} is more than the model's {} positions",
                   job.data.context_size, model.positions);
    begin_token(job, model);
}

// Tokenizer of the folder, or how to get one.
Tokenizer read_tokenizer(const std::string& folder) {
    const std::string file = folder + "/tokenizer.json";
    if (!path_exists(file) && path_exists(folder + "/vocab.json") &&
        path_exists(folder + "/merges.txt"))
        user_error(
            "{}: missing; AutoTokenizer.from_pretrained(\"{}\").save_pretrained(\"{}\") of "
            "transformers makes it of vocab.json and merges.txt",
            file, folder, folder);
    return Tokenizer(file);
}

bool needs_tokenizer(const TextConfig& text) {
    return std::any_of(text.files.begin(), text.files.end(), [](const std::string& file) {
        const TextFormat format = text_format(file);
        return format == TextFormat::text || format == TextFormat::json_lines;
    });
}

// Files by content: names and sizes stay when weights are fetched anew or a text is edited.
struct Contents {
    nlohmann::ordered_json weights;
    nlohmann::ordered_json texts;
};

// Every rank reads a part of the bytes. Collective.
Contents contents_of(const std::vector<std::string>& weights, const std::vector<std::string>& texts,
                     const Communicator& world) {
    constexpr Index piece_bytes = Index{1} << 24;
    const Stopwatch clock;
    std::vector<std::string> files = weights;
    files.insert(files.end(), texts.begin(), texts.end());
    std::vector<Index> sizes;
    std::vector<std::uint64_t> sums(files.size(), 0);
    world.together([&] {
        Index turn = 0;
        for (std::size_t i = 0; i < files.size(); ++i) {
            sizes.push_back(size_of_file(files[i]));
            for (Index at = 0; at < sizes[i]; at += piece_bytes)
                if (turn++ % world.size() == world.rank())
                    sums[i] +=
                        checksum_of_file(files[i], {at, std::min(sizes[i], at + piece_bytes)});
        }
    });
    world.all_reduce_sum(std::span<std::uint64_t>(sums));
    const double bytes = static_cast<double>(std::accumulate(sizes.begin(), sizes.end(), Index{0}));
    if (const double seconds = clock.seconds(); seconds > 1)
        log_info("generate: checksums of weights and texts: {:.1f} GB at {:.1f} GB/s", bytes / 1e9,
                 bytes / 1e9 / seconds);
    Contents contents{nlohmann::ordered_json::array(), nlohmann::ordered_json::array()};
    for (std::size_t i = 0; i < files.size(); ++i)
        (i < weights.size() ? contents.weights : contents.texts)
            .push_back({{"name", file_name(files[i])},
                        {"bytes", sizes[i]},
                        {"content", hexadecimal(sums[i])}});
    return contents;
}

// What tells a data set where it came from, and a resumed job that it is the same one: of
// config.json what the activations depend on.
std::string provenance(const GenerateJob& job, const TransformerConfig& model,
                       const Tokenizer* tokenizer, const Contents& contents) {
    std::vector<Index> special;
    const std::vector<bool> excluded = excluded_ids(job, model, nullptr);
    for (std::size_t id = 0; id < excluded.size(); ++id)
        if (excluded[id]) special.push_back(static_cast<Index>(id));
    const auto begin = begin_token(job, model);
    return nlohmann::ordered_json{
        {"input_tap", job.model.tap},
        {"target_tap", "mlp_output"},
        {"model_config",
         {{"model_type", model.family},
          {"heads", model.heads},
          {"d_mlp", model.d_mlp},
          {"vocabulary", model.vocabulary},
          {"positions", model.positions},
          {"norm_epsilon", model.norm_epsilon},
          {"activation", static_cast<int>(model.activation)},
          {"begin_token", begin ? nlohmann::ordered_json(*begin) : nlohmann::ordered_json()},
          {"excluded_tokens", special}}},
        {"weights", contents.weights},
        {"tokenizer", tokenizer != nullptr ? tokenizer->fingerprint() : "none"},
        {"text_files", contents.texts},
        {"text_encoding", job.text.encoding},
        {"token_type", job.text.token_type},
        {"text_column", job.text.column},
        {"document_separator", job.text.document_separator},
        {"separator_token", job.text.separator_token},
        {"context_size", job.data.context_size},
        {"batch_tokens", job.data.batch_tokens},
        {"prepend_bos", job.data.prepend_bos},
        {"exclude_special_tokens", job.data.exclude_special_tokens},
        {"target_tokens", job.data.target_tokens}}
        .dump();
}

DatasetWriterConfig writer_config(const GenerateJob& job, const TransformerConfig& model,
                                  const std::string& origin) {
    DatasetWriterConfig config;
    config.folder = job.job.output;
    config.model_name = job.model.name.empty() ? file_name(job.model.path) : job.model.name;
    for (const std::string& file : job.text.files)
        config.dataset += (config.dataset.empty() ? "" : ", ") + file_name(file);
    config.split = job.text.split;
    config.layers = model.layers;
    config.d_model = model.d_model;
    config.dtype = *dtype_from_name(job.data.dtype);
    config.chunk_tokens = job.data.chunk_tokens;
    config.seed = static_cast<std::uint64_t>(job.job.seed);
    config.gzip = job.data.compression == "gzip" ? 4 : 0;  // the reference's level
    config.provenance = origin;
    return config;
}

// The text as rows: sequences in order, each with the number of its tokens that become rows.
class RowStream {
  public:
    struct Sequence {
        std::vector<std::int32_t> ids;
        Index first_row = 0;
        Index rows = 0;
    };

    RowStream(const GenerateJob& job, const TransformerConfig& model, Tokenizer* tokenizer,
              const Communicator& world)
        : tokens_(job.text, tokenizer, model.vocabulary, world),
          cutter_(job.data.context_size - (job.data.prepend_bos ? 1 : 0)),
          excluded_(excluded_ids(job, model, tokenizer)),
          begin_token_(begin_token(job, model)) {}

    bool writes(std::int32_t id) const { return !excluded_[static_cast<std::size_t>(id)]; }
    const std::deque<Sequence>& sequences() const { return sequences_; }
    Index end() const { return end_; }

    /// Forgets the sequences before `row` and reads on until the rows up to `wanted_end`, or all
    /// there are, are in sequences(). Collective.
    void advance(Index row, Index wanted_end) {
        drop_before(row);
        std::deque<std::vector<std::int32_t>> pieces;
        while (end_ < wanted_end && tokens_.read_more(cutter_, pieces)) {
            for (std::vector<std::int32_t>& piece : pieces) add(std::move(piece));
            pieces.clear();
            drop_before(row);
        }
    }

  private:
    void add(std::vector<std::int32_t> ids) {
        if (begin_token_) ids.insert(ids.begin(), *begin_token_);
        const Index rows =
            std::count_if(ids.begin(), ids.end(), [&](std::int32_t id) { return writes(id); });
        if (rows == 0) return;
        sequences_.push_back({std::move(ids), end_, rows});
        end_ += rows;
    }
    void drop_before(Index row) {
        while (!sequences_.empty() && sequences_.front().first_row + sequences_.front().rows <= row)
            sequences_.pop_front();
    }

    TokenStream tokens_;
    SequenceCutter cutter_;
    std::vector<bool> excluded_;
    std::optional<std::int32_t> begin_token_;
    std::deque<Sequence> sequences_;
    Index end_ = 0;  // rows up to here were read
};

// Sequences [first, last) of a RowStream.
struct Batch {
    std::size_t first = 0;
    std::size_t last = 0;
};

// Whole sequences of together at most batch_tokens, those that have rows before `end`. The same
// whatever the number of ranks, so that the dense products have the same shapes and roundings.
std::vector<Batch> make_batches(const std::deque<RowStream::Sequence>& sequences, Index end,
                                Index batch_tokens) {
    std::vector<Batch> batches;
    Index tokens = 0;
    for (std::size_t i = 0; i < sequences.size() && sequences[i].first_row < end; ++i) {
        const auto length = static_cast<Index>(sequences[i].ids.size());
        if (batches.empty() || tokens + length > batch_tokens) {
            batches.push_back({i, i});
            tokens = 0;
        }
        batches.back().last = i + 1;
        tokens += length;
    }
    return batches;
}

// Rows in `range` of the sequences of batches [mine).
Index rows_of(const std::deque<RowStream::Sequence>& sequences, const std::vector<Batch>& batches,
              Shard mine, Shard range) {
    if (mine.size() == 0) return 0;
    const auto& first = sequences[batches[static_cast<std::size_t>(mine.begin)].first];
    const auto& last = sequences[batches[static_cast<std::size_t>(mine.end - 1)].last - 1];
    return std::min(range.end, last.first_row + last.rows) - std::max(range.begin, first.first_row);
}

class Generator {
  public:
    Generator(const GenerateJob& job, Backend& backend, Transformer& model)
        : job_(job), backend_(backend), model_(model) {}

    /// Appends the rows [range) of the batch's sequences to `rows`: [n, L, 2, d].
    void run(const RowStream& stream, const Batch& batch, Shard range, std::vector<float>& rows) {
        SequenceBatch input;
        for (std::size_t i = batch.first; i < batch.last; ++i) input.add(stream.sequences()[i].ids);
        forward(input);
        const Index width = row_width();
        std::size_t token = 0;
        for (std::size_t i = batch.first; i < batch.last; ++i) {
            Index row = stream.sequences()[i].first_row;
            for (const std::int32_t id : stream.sequences()[i].ids) {
                const float* const values = host_.data() + static_cast<Index>(token++) * width;
                if (!stream.writes(id)) continue;
                if (row >= range.begin && row < range.end)
                    rows.insert(rows.end(), values, values + width);
                ++row;
            }
        }
    }
    Index row_width() const { return 2 * model_.config().layers * model_.config().d_model; }

  private:
    // Taps straight into the order of a row: by layer, the input and then the target.
    void forward(const SequenceBatch& input) {
        const Index tokens = input.tokens();
        const Index width = row_width();
        const Index d = model_.config().d_model;
        device_.reserve_discarding(backend_.memory(), tokens * width, Purpose::language_model);
        const Span<float> all = device_.span().subspan(0, tokens * width);
        const Tap inputs{Matrix<float>(all, tokens, width), 2 * d};
        const Tap outputs{
            Matrix<float>(all.subspan(d, tokens * width - d), tokens, width - d, width), 2 * d};
        Taps taps;
        (job_.model.tap == "residual" ? taps.residual : taps.mlp_input) = inputs;
        taps.mlp_output = outputs;
        model_.forward(input, taps);
        host_.resize(static_cast<std::size_t>(tokens * width));
        backend_.download(Span<const float>(all), std::span<float>(host_));
    }

    const GenerateJob& job_;
    Backend& backend_;
    Transformer& model_;
    Buffer<float> device_;
    std::vector<float> host_;
};

// One line now and then on rank 0: how far, how fast, how long yet.
class Progress {
  public:
    Progress(Index done, Index target) : start_(done), target_(target) {}
    void report(Index done, bool now) {
        if (process_rank() != 0 || (!now && since_.seconds() < progress_interval_s)) return;
        since_.lap();
        const double rate = static_cast<double>(done - start_) / std::max(1e-9, clock_.seconds());
        if (target_ > 0)
            log_live(fmt::format("generate: {} of {} tokens, {:.0f} tokens/s, {:.0f} s left", done,
                                 target_, rate,
                                 static_cast<double>(target_ - done) / std::max(1e-9, rate)));
        else
            log_live(fmt::format("generate: {} tokens, {:.0f} tokens/s", done, rate));
    }

  private:
    Index start_;
    Index target_;
    Stopwatch clock_;
    Stopwatch since_;
};

}  // namespace

GenerateResult generate(const GenerateJob& job, Backend& backend, const Communicator& world,
                        const std::function<bool()>& stop) {
    std::optional<Transformer> model;
    std::optional<Tokenizer> tokenizer;
    std::string origin;
    std::vector<std::string> weights;
    world.together([&] {
        model.emplace(job.model.path, backend);
        check_job(job, model->config());
        if (needs_tokenizer(job.text)) tokenizer.emplace(read_tokenizer(job.model.path));
        weights = tensor_file_names(job.model.path);
    });
    world.stop_point("the language model was read");
    const Contents contents = contents_of(weights, job.text.files, world);
    origin = provenance(job, model->config(), tokenizer ? &*tokenizer : nullptr, contents);
    world.stop_point("checksums of weights and texts were made");
    DatasetWriter writer(writer_config(job, model->config(), origin), world);
    if (writer.complete()) {
        log_info("{}: is complete with {} tokens", job.job.output, writer.tokens());
        return {true, writer.tokens()};
    }
    if (writer.chunks() > 0)
        log_info("{}: goes on behind {} chunks of {} tokens", job.job.output, writer.chunks(),
                 writer.tokens());

    RowStream stream(job, model->config(), tokenizer ? &*tokenizer : nullptr, world);
    Generator generator(job, backend, *model);
    Progress progress(writer.tokens(), job.data.target_tokens);
    std::vector<float> rows;
    while (job.data.target_tokens == 0 || writer.tokens() < job.data.target_tokens) {
        if (!world.agree(!stop())) return {false, writer.tokens()};
        const Index begin = writer.tokens();
        Index end = begin + job.data.chunk_tokens;
        if (job.data.target_tokens > 0) end = std::min(end, job.data.target_tokens);
        stream.advance(begin, end);
        end = std::min(end, stream.end());
        if (end <= begin) break;
        rows.clear();
        bool stopped = false;
        world.together([&] {
            const std::vector<Batch> batches =
                make_batches(stream.sequences(), end, job.data.batch_tokens);
            if (static_cast<int>(batches.size()) < world.size() &&
                end - begin >= job.data.chunk_tokens)
                log_warning(
                    "a chunk has {} batches for {} ranks, some have nothing to do: lower "
                    "data.batch_tokens or raise data.chunk_tokens",
                    batches.size(), world.size());
            const Shard mine =
                shard_of(static_cast<Index>(batches.size()), world.rank(), world.size());
            // Growing step by step would need twice the chunk's memory.
            rows.reserve(static_cast<std::size_t>(
                rows_of(stream.sequences(), batches, mine, {begin, end}) * generator.row_width()));
            for (Index i = mine.begin; i < mine.end; ++i) {
                if ((stopped = stop())) break;
                generator.run(stream, batches[static_cast<std::size_t>(i)], {begin, end}, rows);
                note_progress();
                // The other ranks are about as far.
                progress.report(begin + (end - begin) * (i + 1 - mine.begin) / mine.size(), false);
            }
        });
        if (!world.agree(!stopped)) return {false, writer.tokens()};
        writer.write_chunk(rows, "");
        progress.report(writer.tokens(), true);
    }
    if (writer.tokens() == 0) user_error("text.files have no text: nothing to write");
    if (writer.tokens() < job.data.target_tokens)
        log_warning("the text ended after {} of {} tokens", writer.tokens(),
                    job.data.target_tokens);
    writer.finish();
    return {true, writer.tokens()};
}

}  // namespace clt
