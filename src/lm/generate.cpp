#include "clt/lm/generate.hpp"

#include <algorithm>
#include <deque>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "clt/base/checksum.hpp"
#include "clt/base/log.hpp"
#include "clt/base/progress.hpp"
#include "clt/base/stopwatch.hpp"
#include "clt/data/writer.hpp"
#include "clt/io/file.hpp"
#include "lm/token_stream.hpp"
#include "lm/tokenizer.hpp"
#include "lm/transformer.hpp"

namespace clt {
namespace {

constexpr double progress_interval_s = 5;

std::string file_name(const std::string& path) {
    const auto normal = std::filesystem::path(path).lexically_normal();
    return (normal.has_filename() ? normal : normal.parent_path()).filename().string();
}

// The ids whose rows are not written.
std::vector<bool> excluded_ids(const GenerateJob& job, const TransformerConfig& model,
                               const Tokenizer* tokenizer) {
    std::vector<bool> excluded(static_cast<std::size_t>(model.vocabulary), false);
    if (!job.data.exclude_special_tokens) return excluded;
    for (const auto& id : {model.begin_token, model.end_token})
        if (id) excluded[static_cast<std::size_t>(*id)] = true;
    if (tokenizer != nullptr)
        for (const std::int32_t id : tokenizer->special_ids())
            if (id < model.vocabulary) excluded[static_cast<std::size_t>(id)] = true;
    return excluded;
}

void check_job(const GenerateJob& job, const TransformerConfig& model) {
    if (job.text.files.empty()) user_error("text.files is empty, expected at least one file");
    for (const std::string& file : job.text.files) {
        text_format(file);
        if (!std::filesystem::exists(file)) user_error("{}: no such file (text.files)", file);
    }
    if (job.data.context_size > model.positions)
        user_error("data.context_size = {} is more than the model's {} positions",
                   job.data.context_size, model.positions);
    if (job.data.prepend_bos && !model.begin_token)
        user_error(
            "data.prepend_bos is true, but {}/config.json has no bos_token_id; set it to false",
            job.model.path);
}

bool needs_tokenizer(const TextConfig& text) {
    return std::any_of(text.files.begin(), text.files.end(), [](const std::string& file) {
        const TextFormat format = text_format(file);
        return format == TextFormat::text || format == TextFormat::json_lines;
    });
}

// What tells a data set where it came from, and a resumed job that it is the same one.
std::string provenance(const GenerateJob& job, const Tokenizer* tokenizer) {
    nlohmann::ordered_json files = nlohmann::ordered_json::array();
    for (const std::string& file : job.text.files)
        files.push_back({{"name", file_name(file)},
                         {"bytes", static_cast<Index>(std::filesystem::file_size(file))}});
    return nlohmann::ordered_json{
        {"input_tap", job.model.tap},
        {"target_tap", "mlp_output"},
        {"model_config", fingerprint_of(read_file(job.model.path + "/config.json"))},
        {"tokenizer", tokenizer != nullptr ? tokenizer->fingerprint() : "none"},
        {"text_files", files},
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
          // One place less than fits: the reference's rule, so that its pieces are ours.
          cutter_(job.data.context_size - (job.data.prepend_bos ? 1 : 0) - 1),
          excluded_(excluded_ids(job, model, tokenizer)) {
        if (job.data.prepend_bos) begin_token_ = model.begin_token;
    }

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
    world.together([&] {
        model.emplace(job.model.path, backend);
        check_job(job, model->config());
        if (needs_tokenizer(job.text)) tokenizer.emplace(job.model.path + "/tokenizer.json");
        origin = provenance(job, tokenizer ? &*tokenizer : nullptr);
    });
    world.stop_point("the language model was read");
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
