#include "clt/model/cost.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "clt/base/error.hpp"
#include "clt/memory/available.hpp"
#include "clt/memory/memory.hpp"
#include "model/selection.hpp"

namespace clt {
namespace {

constexpr Index float_bytes = 4;
constexpr Index counter_bytes = 8;

// Code, MPI, HDF5 and the BLAS with their buffers. 28 MB resident measured for `clt inspect` (Open
// MPI 4.1, HDF5 1.10); the rest is room for buffers that grow with ranks and shapes.
constexpr Index program_bytes = 100'000'000;

Index parts_of(Index n, Index parts) {
    return (n + parts - 1) / parts;
}

/// The sizes of the largest rank.
struct Sizes {
    explicit Sizes(const CostQuery& q)
        : layers(q.shape.layers),
          d(q.shape.d_model),
          stride(layers * d),
          batch(q.batch_tokens),
          replica(parts_of(batch, q.data_parts)),
          slice(parts_of(replica, q.feature_parts)),
          features(parts_of(q.shape.features, q.feature_parts)),
          rows(layers * features),
          encoder(rows * d),
          decoder(features * d * layers * (layers + 1) / 2),
          jumprelu(q.model.activation == "jumprelu"),
          per_token(q.model.activation == "topk"),
          ranked(per_token || q.model.activation == "batchtopk") {
        const double all_rows = static_cast<double>(layers * q.shape.features);
        const double share = static_cast<double>(rows) / all_rows;
        budget = ranked ? selection_budget(q.model, q.shape, batch) * (per_token ? replica : 1) : 0;
        // batchtopk and topk: the mean over shards; the others: as many as the sparse path takes.
        const double kept = per_token
                                ? static_cast<double>(selection_budget(q.model, q.shape, batch)) *
                                      static_cast<double>(batch)
                            : ranked ? static_cast<double>(budget)
                                     : dense_share * all_rows * static_cast<double>(batch);
        entries = std::ceil(kept * share);
        own_entries =
            std::ceil(entries * static_cast<double>(replica) / static_cast<double>(batch));
    }

    Index layers, d, stride;      // L, d, L d
    Index batch, replica, slice;  // tokens: B, B_r, those whose residual this rank forms
    Index features, rows;         // F_p, L F_p
    Index encoder, decoder;       // weights of this rank
    bool jumprelu, per_token, ranked;
    Index budget = 0;        // entries a selection keeps, over its groups
    double entries = 0;      // active (row, token) of this rank's rows and all B tokens
    double own_entries = 0;  // and of its replica's tokens

    Index vectors() const { return rows * (jumprelu ? 2 : 1) + stride; }
    /// Mean width of an active entry's decoder row, were all layers equally active.
    double row_width() const { return static_cast<double>((layers + 1) * d) / 2; }
};

std::vector<MemoryUse> memory_of(const CostQuery& q, const Sizes& s) {
    const auto entries = static_cast<Index>(s.entries);
    const auto own_entries = static_cast<Index>(s.own_entries);
    const Index weights = float_bytes * (s.encoder + s.decoder + s.vectors());

    const Index batches = float_bytes * s.stride * (2 * s.batch + s.replica + 2 * s.slice);
    const Index host_batches = float_bytes * (1 + q.prefetch) * s.slice * 2 * s.stride;
    // A rank holds its part of the window in use and of the next, and of a batch the rows it sends
    // and those it receives, in the stored type; and every rank the window's shuffled order.
    const Index rows_held = 2 * parts_of(q.window_tokens, q.data_parts * q.feature_parts) +
                            (q.window_tokens > 0 ? 2 * s.slice : 0);
    const Index window = rows_held * 2 * s.stride * q.element_bytes + 4 * q.window_tokens;

    // Cut at twice the budget, plus one tile that may pass whole; buffers double when they grow,
    // and cutting copies into a twin: 4 x 16 bytes an entry (relu, jumprelu: 2 x 12, never cut).
    const Index ranked_entries = candidate_limit(s.budget) + q.tile * s.replica;
    const Index candidates = s.ranked ? 64 * ranked_entries : 24 * own_entries;

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

    const std::string shards = "lower model.features or use more feature shards ([grid] feature)";
    const std::string tokens = "lower data.batch_tokens";
    return {
        {name_of(Purpose::parameters), weights, shards},
        {name_of(Purpose::moments), 2 * weights, shards},
        {name_of(Purpose::gradients), float_bytes * s.vectors(), shards},
        {name_of(Purpose::batch), batches + host_batches, tokens},
        {"data windows", window, "lower data.window_tokens"},
        {name_of(Purpose::candidates), candidates, s.ranked ? tokens + " or model.k" : tokens},
        {name_of(Purpose::active_set), active, s.ranked ? tokens + " or model.k" : tokens},
        {name_of(Purpose::workspace), workspace, tokens},
        {"program and libraries", program_bytes, "run fewer ranks on the host"},
    };
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
        const int width = s.per_token ? 4 : 11;  // as model/selection.cpp
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
    void add(const char* stage, double flop, double bytes) {
        stages_.push_back({stage, flop, bytes});
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
    const double decoder_bytes = real(float_bytes * s.decoder);
    // A product of [B, d] with every encoder row, or [B, (L - l) d] with every decoder row.
    const double own_encoder_flop = 2 * real(s.replica) * real(s.encoder);
    const double own_decoder_flop = 2 * real(s.replica) * real(s.decoder);
    const double encoder_flop = 2 * real(s.batch) * real(s.encoder);
    const double decoder_flop = 2 * real(s.batch) * real(s.decoder);
    const double optimiser = 6;   // reads and writes a weight and its two moments
    const double adam_flop = 12;  // an element's
    const double walks = q.gradient_clip > 0 ? 1 : 0;  // more of them, without an update
    const double gathers = 2 * s.row_width();          // flop of an entry's multiply-add of a row

    Stages stages;
    stages.add("gather_inputs", 0, x_bytes + slice_bytes);
    if (s.ranked) {
        stages.add("encode_select", own_encoder_flop, encoder_bytes + own_bytes);
        stages.add(
            "decode", gathers * s.own_entries,
            std::min(real(float_bytes) * s.own_entries * s.row_width(), decoder_bytes) + own_bytes);
    } else {
        stages.add("dense_decode", own_encoder_flop + own_decoder_flop,
                   encoder_bytes + decoder_bytes + 2 * own_bytes);
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
        stages.add(
            "encoder_rows",
            (1 + walks) * std::max(2 * real(s.d) * s.entries, dense_flop) +
                adam_flop * real(s.encoder),
            optimiser * encoder_bytes + (1 + walks) * std::min(gathered * real(s.d), x_bytes));
    } else {
        stages.add(
            "dense_rows",
            (1 + walks) * (2 * encoder_flop + 2 * decoder_flop) +
                adam_flop * real(s.encoder + s.decoder),
            (optimiser + walks) * (encoder_bytes + decoder_bytes) + (1 + walks) * 2 * x_bytes);
    }
    return stages.take();
}

std::string sized(Index bytes) {
    const auto size = static_cast<double>(bytes);
    return size < 1e9 ? fmt::format("{:.0f} MB", size / 1e6) : fmt::format("{:.3g} GB", size / 1e9);
}

/// Largest first.
std::vector<MemoryUse> by_size(std::vector<MemoryUse> uses) {
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

Index StepCost::memory_bytes() const {
    return std::accumulate(memory.begin(), memory.end(), Index{0},
                           [](Index sum, const MemoryUse& use) { return sum + use.bytes; });
}

Index StepCost::communication_bytes() const {
    return std::accumulate(communication.begin(), communication.end(), Index{0},
                           [](Index sum, const Traffic& traffic) { return sum + traffic.bytes; });
}

StepCost step_cost(const CostQuery& query) {
    CLT_CHECK(query.batch_tokens > 0 && query.data_parts > 0 && query.feature_parts > 0 &&
              query.shape.layers > 0 && query.shape.features > 0);
    const Sizes sizes(query);
    StepCost cost;
    cost.parameters = query.shape.parameters();
    cost.memory = memory_of(query, sizes);
    cost.communication = communication_of(query, sizes);
    cost.stages = stages_of(query, sizes);
    return cost;
}

double floor_s(const StageFloor& stage, const Machine& machine) {
    const double share = 1e9 / static_cast<double>(machine.ranks_per_host);
    return std::max(stage.flop / (machine.gflops * share),
                    stage.bytes / (machine.gbytes_per_s * share));
}

double floor_s(const StepCost& cost, const Machine& machine) {
    double seconds = 0;
    for (const StageFloor& stage : cost.stages) seconds += floor_s(stage, machine);
    return seconds;
}

std::string memory_summary(const StepCost& cost) {
    std::vector<MemoryUse> uses = by_size(cost.memory);
    std::erase_if(uses,
                  [&](const MemoryUse& use) { return use.bytes < cost.memory_bytes() / 100; });
    return fmt::format("{} a rank: {}", sized(cost.memory_bytes()), listed(uses));
}

void check_memory(const StepCost& cost, Index available_bytes, Index ranks_per_host) {
    const Index limit = available_bytes / ranks_per_host;
    if (cost.memory_bytes() <= limit) return;
    std::vector<MemoryUse> largest = by_size(cost.memory);
    largest.resize(std::min<std::size_t>(3, largest.size()));
    std::vector<std::string> remedies;
    for (const MemoryUse& use : largest)
        if (std::find(remedies.begin(), remedies.end(), use.smaller) == remedies.end())
            remedies.push_back(use.smaller);
    user_error(
        "a rank needs {} of memory ({}), but the host has {} for each of its {} rank{}; "
        "{}",
        sized(cost.memory_bytes()), listed(largest), sized(limit), ranks_per_host,
        ranks_per_host == 1 ? "" : "s", fmt::join(remedies, ", or "));
}

void check_memory(const StepCost& cost, const Communicator& world) {
    const Communicator host = world.split_by_host();
    world.together([&] { check_memory(cost, available_host_bytes(), host.size()); });
}

}  // namespace clt
