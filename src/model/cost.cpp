#include "clt/model/cost.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "clt/base/error.hpp"
#include "clt/memory/available.hpp"
#include "clt/memory/memory.hpp"
#include "model/cost_sizes.hpp"

namespace clt {
namespace {

// Code, MPI, HDF5 and the BLAS with their buffers. 28 MB resident measured for `clt inspect` (Open
// MPI 4.1, HDF5 1.10); the rest is room for buffers that grow with ranks and shapes.
constexpr Index program_bytes = 100'000'000;
// CUDA's context, the code of cuBLAS and its workspace. Estimates: about 0.5 GB of a
// GPU and 0.4 GB of its host is what such programs show.
constexpr Index cuda_device_bytes = 600'000'000;
constexpr Index cuda_host_bytes = 400'000'000;
constexpr const char* cuda_context = "CUDA and cuBLAS";

// Arrays at least this large begin at multiples of it (io/hdf5.cpp).
constexpr Index file_alignment = Index{1} << 20;
// Texts, names and what else HDF5 stores. About 20 kB measured.
constexpr Index file_overhead_bytes = 30'000;

/// Throws UserError unless every product of the sizes fits: those of row numbers in 32 bits, those
/// of elements below largest_size.
void check_sizes(const CostQuery& q) {
    const auto& [layers, d, features] = q.shape;
    const auto check = [](const char* what, Index limit, std::initializer_list<Index> factors) {
        if (!product_within(limit, factors))
            user_error("{} is {}: more than {}, beyond which nothing is counted here", what,
                       fmt::join(factors, " x "), limit);
    };
    check("layers x features", std::numeric_limits<std::int32_t>::max(), {layers, features});
    check("features x d_model x layers x layers", largest_size, {features, d, layers, layers});
    check("batch tokens x layers x d_model", largest_size, {q.batch_tokens, layers, d});
    check("batch tokens x layers x features", largest_size, {q.batch_tokens, layers, features});
    check("window tokens x layers x d_model", largest_size, {q.window_tokens, layers, d});
}

/// Of a checkpoint: value and two moments of every parameter, and steps since each feature fired.
Index checkpoint_bytes_of(const CostQuery& q, const Sizes& s) {
    Index bytes = file_overhead_bytes;
    const auto add = [&](Index count, Index array_bytes) {
        if (array_bytes >= file_alignment)
            array_bytes = part_of(array_bytes, file_alignment) * file_alignment;
        bytes += count * array_bytes;
    };
    const Index features = q.shape.features;
    add(3 * s.layers, float_bytes * features * s.d);
    for (Index layer = 0; layer < s.layers; ++layer)
        add(3, float_bytes * features * q.shape.decoder_width(layer));
    add((s.jumprelu ? 6 : 3) * s.layers, float_bytes * features);
    add(3, float_bytes * s.stride);
    add(s.layers, counter_bytes * features);
    return bytes;
}

std::vector<MemoryUse> memory_of(const CostQuery& q, const Sizes& s) {
    const auto entries = static_cast<Index>(s.entries);
    const auto own_entries = static_cast<Index>(s.own_entries);
    const Index weights = float_bytes * (s.encoder + s.decoder + s.vectors());
    const Index rounded_weights = q.rounded ? rounded_bytes * s.encoder : 0;

    Index batches = float_bytes * s.stride * (2 * s.batch + s.replica + 2 * s.slice);
    if (q.cuda) batches += float_bytes * s.stride * (s.batch + s.slice);  // the next batch
    if (q.rounded) batches += rounded_bytes * s.stride * s.batch;
    const Index host_batches = float_bytes * (1 + q.prefetch) * s.slice * 2 * s.stride;
    // A rank holds its part of the window in use and of the next, and of a batch the rows it sends
    // and those it receives, in the stored type; and every rank the window's shuffled order.
    const Index rows_held = 2 * part_of(q.window_tokens, q.data_parts * q.feature_parts) +
                            (q.window_tokens > 0 ? 2 * s.slice : 0);
    const Index window = rows_held * 2 * s.stride * q.element_bytes + 4 * q.window_tokens;

    // Cut at twice the budget, plus one tile that may pass whole; cutting copies into a twin: 2 x
    // 16 bytes an entry (relu, jumprelu: 12, never cut, with an eighth of room).
    const Index ranked_entries = candidate_limit(s.budget) + q.tile * s.replica;
    const Index candidates = s.ranked ? 32 * ranked_entries : 12 * (own_entries + own_entries / 8);

    // token, pre, value, gradient with an eighth of room; the starts of the rows.
    const auto set_bytes = [&](Index n) { return 16 * (n + n / 8) + 8 * (s.rows + 1); };
    Index active = set_bytes(own_entries);
    if (q.data_parts > 1)
        active += set_bytes(entries) + 12 * entries + q.data_parts * counter_bytes * (s.rows + 1);

    Index workspace = float_bytes * q.tile * s.replica + 5 * counter_bytes * s.rows +
                      4 * counter_bytes * s.stride + float_bytes * s.stride;
    if (q.loss.sparsity > 0) workspace += 2 * float_bytes * s.rows;
    if (s.per_token) workspace += 20 * counter_bytes * s.replica;
    if (!s.ranked)  // pre, value and gradient of a tile over all tokens, gradients of its rows
        workspace += float_bytes * q.tile * (3 * s.batch + s.stride + s.d);
    // The decoder's order by token: two of keys and places, one of features with values.
    if (q.cuda) workspace += 24 * own_entries + counter_bytes * s.layers * s.replica;

    const std::string shards = "lower model.features or use more feature shards ([grid] feature)";
    const std::string tokens = "lower data.batch_tokens";
    const std::string selected = s.ranked ? tokens + " or model.k" : tokens;
    std::vector<MemoryUse> uses{
        {name_of(Purpose::parameters), weights + rounded_weights, shards, q.cuda},
        {name_of(Purpose::moments), 2 * weights, shards, q.cuda},
        {name_of(Purpose::gradients), float_bytes * s.vectors(), shards, q.cuda},
        {name_of(Purpose::batch), batches + (q.cuda ? 0 : host_batches), tokens, q.cuda},
        {name_of(Purpose::candidates), candidates, selected, q.cuda},
        {name_of(Purpose::active_set), active, selected, q.cuda},
        {name_of(Purpose::workspace), workspace, tokens, q.cuda},
    };
    if (q.cuda) {
        const Index axes = (q.data_parts > 1 ? 1 : 0) + (q.feature_parts > 1 ? 1 : 0);
        uses.push_back({cuda_context, cuda_device_bytes, "use fewer ranks", true});
        if (axes > 0)  // a communicator for each, and one of all ranks
            uses.push_back({"NCCL", (axes + 1) * q.communicator_bytes, "use fewer ranks", true});
        uses.push_back({"batches on the host", host_batches, tokens});
    }
    if (q.keeps_checkpoint_copy)  // replicas share the rows of their shard
        uses.push_back({"a checkpoint's copy",
                        part_of(3 * weights + counter_bytes * s.rows, q.data_parts),
                        "use more ranks"});
    uses.push_back({"data windows", window, "lower data.window_tokens"});
    uses.push_back({"program and libraries", program_bytes + (q.cuda ? cuda_host_bytes : 0),
                    "run fewer ranks on the host"});
    return uses;
}

/// Ring algorithms: of `bytes` in all, a rank passes on all parts but one.
Index ring(Index bytes, Index ranks) {
    return bytes / ranks * (ranks - 1);
}

std::vector<Traffic> communication_of(const CostQuery& q, const Sizes& s) {
    const Index ranks = q.data_parts * q.feature_parts;
    std::vector<Traffic> traffic;
    const auto add = [&](const char* what, const char* collective, Index bytes) {
        if (bytes > 0) traffic.push_back({what, collective, bytes});
    };
    const Index all_tokens = float_bytes * s.batch * s.stride;
    add("inputs", "all-gather, all ranks", ring(all_tokens, ranks));
    add("reconstructions", "reduce-scatter, feature axis",
        ring(float_bytes * s.replica * s.stride, q.feature_parts));
    add("residual gradients", "all-gather, all ranks", ring(all_tokens, ranks));

    if (s.ranked) {
        const Index positions = (s.per_token ? 1 : s.batch) * s.layers * q.shape.features;
        const int width = digit_bits(s.per_token);
        Index counts = 0;
        for (int bits :
             {32, static_cast<int>(std::bit_width(static_cast<std::uint64_t>(positions)))})
            for (; bits > 0; bits -= width) counts += Index{1} << std::min(width, bits);
        add("selection histograms",
            s.per_token ? "all-reduce, feature axis" : "all-reduce, all ranks",
            2 * ring(counter_bytes * counts * (s.per_token ? s.replica : 1),
                     s.per_token ? q.feature_parts : ranks));
    }
    if (s.ranked && q.model.ranking == "zscore")
        add("column statistics", "all-reduce, data axis", 2 * ring(16 * s.rows, q.data_parts));
    add("feature counts", "all-reduce, data axis",
        2 * ring(2 * counter_bytes * s.rows, q.data_parts));
    if (q.data_parts > 1 && s.ranked)
        add("active sets", "all-gather, data axis",
            ring(12 * static_cast<Index>(s.entries), q.data_parts) +
                (q.data_parts - 1) * counter_bytes * (s.rows + 1));
    return traffic;
}

class Stages {
  public:
    void add(const char* stage, double flop, double bytes, double encoder_flop = 0) {
        stages_.push_back({stage, flop, bytes, encoder_flop});
    }
    std::vector<StageFloor> take() { return std::move(stages_); }

  private:
    std::vector<StageFloor> stages_;
};

std::vector<StageFloor> stages_of(const CostQuery& q, const Sizes& s) {
    const auto real = [](Index n) { return static_cast<double>(n); };
    const double x_bytes = real(float_bytes * s.batch * s.stride);  // inputs, or gradients
    const double own_bytes = real(float_bytes * s.replica * s.stride);
    const double slice_bytes = real(float_bytes * s.slice * s.stride);
    const double encoder_bytes = real(float_bytes * s.encoder);
    const double product_share = q.rounded ? 0.5 : 1;  // of the bytes of the encoder's factors
    const double decoder_bytes = real(float_bytes * s.decoder);
    // A product of [B, d] with every encoder row, or [B, (L - l) d] with every decoder row.
    const double own_encoder_flop = 2 * real(s.replica) * real(s.encoder);
    const double own_decoder_flop = 2 * real(s.replica) * real(s.decoder);
    const double encoder_flop = 2 * real(s.batch) * real(s.encoder);
    const double decoder_flop = 2 * real(s.batch) * real(s.decoder);
    const double optimiser = 6;  // reads and writes a weight and its two moments
    const double encoder_optimiser = q.rounded ? 6.5 : 6;
    const double adam_flop = 12;                       // an element's
    const double walks = q.gradient_clip > 0 ? 1 : 0;  // more of them, without an update
    const double gathers = 2 * s.row_width();          // flop of an entry's multiply-add of a row

    Stages stages;
    stages.add("gather_inputs", 0, x_bytes + slice_bytes);
    if (s.ranked) {
        stages.add("encode_select", own_encoder_flop, product_share * (encoder_bytes + own_bytes),
                   own_encoder_flop);
        stages.add(
            "decode", gathers * s.own_entries,
            std::min(real(float_bytes) * s.own_entries * s.row_width(), decoder_bytes) + own_bytes);
    } else {
        stages.add("dense_decode", own_encoder_flop + own_decoder_flop,
                   encoder_bytes + decoder_bytes + 2 * own_bytes, own_encoder_flop);
    }
    stages.add("reduce", 0, own_bytes + slice_bytes);
    stages.add("residual", 0, 4 * slice_bytes);  // reads two, writes the error and its gradient
    stages.add("gather_gradient", 0,
               x_bytes - slice_bytes + (q.loss.sparsity > 0 ? decoder_bytes : 0));  // row norms
    if (s.ranked) {
        const double gathered = real(float_bytes) * s.entries;
        stages.add("decoder_rows", (2 + walks) * gathers * s.entries + adam_flop * real(s.decoder),
                   (optimiser + walks) * decoder_bytes +
                       (1 + walks) * std::min(gathered * s.row_width(), x_bytes));
        // The pre-activation loss encodes again and makes the gradient dense.
        const double dense_flop = q.loss.preactivation > 0 ? 2 * encoder_flop : 0;
        stages.add("encoder_rows",
                   (1 + walks) * std::max(2 * real(s.d) * s.entries, dense_flop) +
                       adam_flop * real(s.encoder),
                   encoder_optimiser * encoder_bytes +
                       (1 + walks) * std::min(gathered * real(s.d), x_bytes),
                   (1 + walks) * dense_flop / 2);
    } else {
        stages.add(
            "dense_rows",
            (1 + walks) * (2 * encoder_flop + 2 * decoder_flop) +
                adam_flop * real(s.encoder + s.decoder),
            (optimiser + walks) * (encoder_bytes + decoder_bytes) + (1 + walks) * 2 * x_bytes,
            (1 + walks) * encoder_flop);
    }
    return stages.take();
}

std::string sized(Index bytes) {
    const auto size = static_cast<double>(bytes);
    return size < 1e9 ? fmt::format("{:.0f} MB", size / 1e6) : fmt::format("{:.3g} GB", size / 1e9);
}

/// Largest first.
std::vector<MemoryUse> by_size(std::vector<MemoryUse> uses, bool on_device) {
    std::erase_if(uses, [&](const MemoryUse& use) { return use.on_device != on_device; });
    std::stable_sort(uses.begin(), uses.end(),
                     [](const MemoryUse& a, const MemoryUse& b) { return a.bytes > b.bytes; });
    return uses;
}

std::string listed(const std::vector<MemoryUse>& uses) {
    std::string text;
    for (const MemoryUse& use : uses)
        text += fmt::format("{}{} {}", text.empty() ? "" : ", ", use.purpose, sized(use.bytes));
    return text;
}

}  // namespace

void describe_backend(const Backend& backend, CostQuery& query) {
    query.cuda = backend.free_bytes().has_value();
    query.rounded = backend.rounds_encoder();
    query.communicator_bytes = backend.communicator_bytes();
    query.tile =
        backend.encode_tile(part_of(query.batch_tokens, query.data_parts), query.shape.d_model);
}

Index StepCost::memory_bytes(bool on_device) const {
    Index sum = 0;
    for (const MemoryUse& use : memory) sum += use.on_device == on_device ? use.bytes : 0;
    return sum;
}

Index StepCost::communication_bytes() const {
    return std::accumulate(communication.begin(), communication.end(), Index{0},
                           [](Index sum, const Traffic& traffic) { return sum + traffic.bytes; });
}

StepCost step_cost(const CostQuery& query) {
    CLT_CHECK(query.batch_tokens > 0 && query.data_parts > 0 && query.feature_parts > 0 &&
              query.shape.layers > 0 && query.shape.features > 0);
    check_sizes(query);
    check_k(query.model, query.shape, query.batch_tokens);
    const Sizes sizes(query);
    StepCost cost;
    cost.checkpoint_bytes = checkpoint_bytes_of(query, sizes);
    cost.parameters = query.shape.parameters();
    cost.memory = memory_of(query, sizes);
    cost.communication = communication_of(query, sizes);
    cost.stages = stages_of(query, sizes);
    if (query.cuda) cost.kernels = cuda_kernels(query, sizes);
    return cost;
}

double floor_s(const StageFloor& stage, const Machine& machine) {
    const double share = 1e9 / static_cast<double>(machine.ranks);
    const double float32 = machine.float32_gflops > 0 ? machine.float32_gflops : machine.gflops;
    return std::max(stage.encoder_flop / (machine.gflops * share) +
                        (stage.flop - stage.encoder_flop) / (float32 * share),
                    stage.bytes / (machine.gbytes_per_s * share));
}

double floor_s(const StepCost& cost, const Machine& machine) {
    double seconds = 0;
    for (const StageFloor& stage : cost.stages) seconds += floor_s(stage, machine);
    return seconds;
}

std::string memory_summary(const StepCost& cost) {
    const auto summary = [&](bool on_device) {
        const Index sum = cost.memory_bytes(on_device);
        std::vector<MemoryUse> uses = by_size(cost.memory, on_device);
        std::erase_if(uses, [&](const MemoryUse& use) { return use.bytes < sum / 100; });
        return fmt::format("{} a rank{}: {}", sized(sum), on_device ? " of its GPU" : "",
                           listed(uses));
    };
    const bool has_device = cost.memory_bytes(true) > 0;
    return (has_device ? summary(true) + "; " : "") + summary(false);
}

void check_memory(const StepCost& cost, Index available_bytes, Index ranks, bool on_device) {
    const Index limit = available_bytes / ranks;
    const Index needed = cost.memory_bytes(on_device);
    if (needed <= limit) return;
    std::vector<MemoryUse> largest = by_size(cost.memory, on_device);
    largest.resize(std::min<std::size_t>(3, largest.size()));
    // "lower a or b" says "lower a" as well.
    std::vector<std::string> remedies;
    for (const MemoryUse& use : largest) {
        const bool said = std::any_of(remedies.begin(), remedies.end(), [&](const auto& remedy) {
            return remedy.starts_with(use.smaller);
        });
        if (said) continue;
        std::erase_if(remedies,
                      [&](const auto& remedy) { return use.smaller.starts_with(remedy); });
        remedies.push_back(use.smaller);
    }
    user_error(
        "a rank needs {} of memory ({}), but the {} has {} for each of its {} rank{}; "
        "{}",
        sized(needed), listed(largest), on_device ? "GPU" : "host", sized(limit), ranks,
        ranks == 1 ? "" : "s", fmt::join(remedies, ", or "));
}

void check_memory(const StepCost& cost, const Backend& backend, const Communicator& world) {
    const Communicator host = world.split_by_host();
    world.together([&] {
        if (const auto device_bytes = backend.free_bytes()) {
            StepCost to_come = cost;  // the context is there and not among what is free
            std::erase_if(to_come.memory,
                          [](const MemoryUse& use) { return use.purpose == cuda_context; });
            check_memory(to_come, *device_bytes, 1, /*on_device=*/true);
        }
        check_memory(cost, available_host_bytes(), host.size());
    });
}

}  // namespace clt
