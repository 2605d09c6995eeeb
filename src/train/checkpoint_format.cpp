#include "train/checkpoint_format.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "clt/base/checksum.hpp"
#include "clt/base/version.hpp"
#include "clt/io/file.hpp"
#include "clt/io/json.hpp"

namespace clt {
namespace {

constexpr Index block_bytes = Index{4} << 20;

// Format 1: byte by byte.
std::uint64_t checksum_of_text(const std::string& text) {
    std::uint64_t sum = mix(0, text.size());
    for (std::size_t i = 0; i < text.size(); ++i)
        sum += mix(i + 1, static_cast<unsigned char>(text[i]));
    return sum;
}

// Each text by its own salt: a part that moves from one to the next shows. Every later format keeps
// this, so that a newer file can be told from a damaged one.
std::uint64_t checksum_of(const CheckpointTexts& texts) {
    std::uint64_t sum = 0;
    for (const std::string* text : {&texts.header, &texts.cursor, &texts.job, &texts.extra})
        sum = mix(sum, checksum_of_text(*text));
    return sum;
}

std::uint64_t checksum_of(const std::vector<std::uint64_t>& sums) {
    return clt::checksum_of(std::as_bytes(std::span(sums)));
}

constexpr std::array<std::pair<H5Type, const char*>, 2> type_names = {
    {{H5Type::float32, "float32"}, {H5Type::int64, "int64"}}};

const char* name_of(H5Type type) {
    for (const auto& [candidate, name] : type_names)
        if (candidate == type) return name;
    check_failed("a type of checkpoints", __FILE__, __LINE__, "");
}

const char* name_of(ArrayRole role) {
    return role == ArrayRole::sharded ? "sharded" : "replicated";
}

// A config struct's fields to a JSON object and back. A field that an older file lacks keeps its
// default.
struct FieldsToJson {  // NOLINT(bugprone-exception-escape): json's move says nothing of it
    nlohmann::ordered_json object;
    template <class T>
    void operator()(const char* name, const T& value, const FieldRule&, const char*) {
        object[name] = value;
    }
};
struct FieldsFromJson {
    const JsonObject& object;
    void operator()(const char* name, Index& value, const FieldRule&, const char*) {
        value = object.integer_or(name, value);
    }
    void operator()(const char* name, double& value, const FieldRule&, const char*) {
        value = object.finite_or(name, value);
    }
    void operator()(const char* name, std::string& value, const FieldRule&, const char*) {
        value = object.text_or(name, value);
    }
    void operator()(const char* name, bool& value, const FieldRule&, const char*) {
        value = object.flag_or(name, value);
    }
};

std::uint64_t hexadecimal_of(const JsonObject& sums, const char* key) {
    const std::string text = sums.text(key);
    if (text.size() != 16 || text.find_first_not_of("0123456789abcdef") != std::string::npos)
        sums.refuse(key, "16 hexadecimal digits");
    return std::stoull(text, nullptr, 16);
}

CheckpointTexts read_texts(const H5File& file) {
    const std::optional<std::string> header = file.read_text("clt_checkpoint");
    if (!header)
        throw DamagedCheckpoint(
            fmt::format("{}: an HDF5 file, but no checkpoint of clt", file.path()));
    CheckpointTexts texts;
    texts.header = *header;
    texts.cursor = file.read_text("cursor").value_or("");
    texts.job = file.read_text("job").value_or("");
    texts.extra = file.read_text("extra").value_or("");
    texts.checksums = file.read_text("checksums").value_or("");
    return texts;
}

template <class T>
std::vector<T> read_whole(const H5File& file, const std::string& name, H5Type type, Index rows,
                          Index cols) {
    const H5Dataset dataset = file.dataset(name);
    if (dataset.type() != type || dataset.rows() != rows || dataset.cols() != cols)
        user_error("{}: array {} is [{}, {}], expected [{}, {}]{}", file.path(), name,
                   dataset.rows(), dataset.cols(), rows, cols,
                   dataset.type() == type ? "" : " of another type");
    std::vector<T> values(static_cast<std::size_t>(rows * cols));
    dataset.read({0, rows}, values.data());
    return values;
}

// Format 1 says nothing of its arrays, and keeps some of the state with the trainer's: its header
// as format 2 would have it. A checksum covers an array.
std::string upgraded(const H5File& file, const CheckpointTexts& texts, const JsonObject& sums,
                     std::vector<std::uint64_t>& block_sums) {
    constexpr std::string_view threshold = "/threshold/";
    Json header = parse_json_object(texts.header, file.path() + ": clt_checkpoint");
    const JsonObject extra = JsonObject::parse(texts.extra, file.path() + ": extra");
    std::string fingerprint;
    if (!texts.cursor.empty())
        fingerprint = JsonObject::parse(texts.cursor, file.path() + ": cursor").text_or("data", "");
    header["tokens"] = extra.integer_or("tokens", 0);
    header["batchtopk_threshold"] = {{"last", 0}, {"running", 0}};
    header["data"] = {{"fingerprint", fingerprint},
                      {"language_model", ""},
                      {"input_tap", ""},
                      {"target_tap", ""},
                      {"layer_ids", Json::array()},
                      {"normalization", extra.text_or("normalization", "none")}};
    header["arrays"] = Json::array();
    for (const auto& [stored_name, unused] : sums.json().items()) {
        if (stored_name == "texts") continue;
        const H5Dataset dataset = file.dataset(stored_name);
        std::string name = stored_name;
        if (const std::size_t at = name.find(threshold); at != std::string::npos)
            name.replace(at, threshold.size(), "/log_threshold/");
        header["arrays"].push_back(
            {{"name", name},
             {"stored_name", stored_name},
             {"type", name_of(dataset.type())},
             {"rows", dataset.rows()},
             {"width", dataset.cols()},
             {"role",
              name_of(name.ends_with("decoder/bias") ? ArrayRole::replicated : ArrayRole::sharded)},
             {"block_rows", std::max<Index>(1, dataset.rows())}});
        block_sums.push_back(hexadecimal_of(sums, stored_name.c_str()));
    }
    return header.dump();
}

std::vector<StoredArray> arrays_of(const JsonObject& header) {
    std::vector<StoredArray> arrays;
    for (const JsonObject& entry : header.objects("arrays")) {
        StoredArray array;
        array.name = entry.text("name");
        array.stored_name = entry.text_or("stored_name", array.name);
        const std::string type = entry.text("type");
        const auto* known = std::find_if(type_names.begin(), type_names.end(),
                                         [&](const auto& pair) { return type == pair.second; });
        if (known == type_names.end()) entry.refuse("type", "float32 or int64");
        array.type = known->first;
        array.rows = entry.integer("rows", 0);
        array.width = entry.integer("width", 1);
        const std::string role = entry.text("role");
        if (role != "sharded" && role != "replicated")
            entry.refuse("role", "sharded or replicated");
        array.role = role == "sharded" ? ArrayRole::sharded : ArrayRole::replicated;
        array.block_rows = entry.integer("block_rows", 1);
        arrays.push_back(std::move(array));
    }
    return arrays;
}

void read_training_data(const JsonObject& json, const StoredHeader& stored,
                        CheckpointHeader& header) {
    TrainingData& data = header.state.data;
    data.fingerprint = json.text("fingerprint");
    data.language_model = json.text("language_model");
    data.input_tap = json.text("input_tap");
    data.target_tap = json.text("target_tap");
    data.layer_ids = json.integers("layer_ids");
    Normalization& normalization = data.normalization;
    normalization.method = json.text("normalization");
    normalization.layers = header.shape.layers;
    normalization.d_model = header.shape.d_model;
    if (stored.normalization.empty()) return;
    const auto d = static_cast<std::ptrdiff_t>(normalization.d_model);
    normalization.stats.resize(static_cast<std::size_t>(normalization.layers));
    auto at = stored.normalization.begin();
    for (const bool targets : {false, true})
        for (const bool deviations : {false, true})
            for (LayerStats& layer : normalization.stats) {
                ColumnStats& columns = targets ? layer.targets : layer.inputs;
                (deviations ? columns.std : columns.mean).assign(at, at + d);
                at += d;
            }
}

// Small, so they are read with the header, and verified. Empty when there are none.
std::vector<float> read_normalization(const H5File& file, const CheckpointHeader& header) {
    std::vector<float> all;
    Normalization shape = header.state.data.normalization;
    if (shape.method != "mean_std" || header.format_version == 1) return all;
    for (const NormalizationArray& wanted : normalization_arrays(shape)) {
        const auto array = std::find_if(header.arrays.begin(), header.arrays.end(),
                                        [&](const auto& a) { return a.name == wanted.name; });
        if (array == header.arrays.end())
            user_error("{}: array {} is missing", file.path(), wanted.name);
        const auto values =
            read_whole<float>(file, wanted.name, H5Type::float32, wanted.rows, wanted.width);
        const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
        std::vector<std::uint64_t> sums(array->block_sums.size(), 0);
        add_block_sums(*array, array->block_rows, {0, array->rows}, bytes, sums);
        for (std::size_t block = 0; block < sums.size(); ++block)
            if (sums[block] != array->block_sums[block])
                user_error("{}: {}", file.path(), damaged_block_text(*array, block));
        all.insert(all.end(), values.begin(), values.end());
    }
    return all;
}

StoredHeader load(const H5File& file) {
    const CheckpointTexts texts = read_texts(file);
    const std::string& path = file.path();
    const JsonObject sums = JsonObject::parse(texts.checksums, path + ": checksums");
    if (hexadecimal_of(sums, "texts") != checksum_of(texts))
        user_error("{}: its attributes do not match their checksum", path);
    StoredHeader stored{texts, {}, {}, 0};
    const Index version =
        JsonObject::parse(texts.header, path + ": clt_checkpoint").integer("format_version", 1);
    if (version > checkpoint_format_version)
        throw NewerCheckpoint(fmt::format(
            "{}: checkpoint format {}, this clt reads up to format {}: use the clt that wrote it, "
            "or a newer one",
            path, version, checkpoint_format_version));
    if (version == 1) stored.texts.header = upgraded(file, texts, sums, stored.block_sums);
    CheckpointHeader header = header_from(path, stored);
    Index blocks = 0;
    for (const StoredArray& array : header.arrays) {
        const H5Dataset dataset = file.dataset(array.stored_name);
        if (dataset.type() != array.type || dataset.rows() != array.rows ||
            dataset.cols() != array.width)
            user_error("{}: array {} is not as the header says", path, array.stored_name);
        blocks += blocks_of(array, array.block_rows);
    }
    if (version > 1) {
        stored.block_sums =
            read_whole<std::uint64_t>(file, block_checksums_name, H5Type::uint64, blocks, 1);
        if (checksum_of(stored.block_sums) != hexadecimal_of(sums, "blocks"))
            user_error("{}: array {} does not match its checksum", path, block_checksums_name);
        header = header_from(path, stored);
    }
    stored.normalization = read_normalization(file, header);
    return stored;
}

// errno's words in HDF5's: the system refused to read, so the content is not to blame.
bool system_refused(const std::string& words) {
    return words.find("error message = '") != std::string::npos;
}

}  // namespace

void SelectionThreshold::add(double threshold) {
    if (!std::isfinite(threshold)) return;  // nothing was cut
    constexpr double weight_of_the_new = 0.01;
    running = running == 0 ? threshold : running + weight_of_the_new * (threshold - running);
    last = threshold;
}

Index block_rows_of(const CheckpointArray& array) {
    return std::max<Index>(1, block_bytes / (array.width * size_of(array.type)));
}

Index blocks_of(const CheckpointArray& array, Index block_rows) {
    return (array.rows + block_rows - 1) / block_rows;
}

void add_block_sums(const CheckpointArray& array, Index block_rows, Shard own,
                    const std::byte* data, std::span<std::uint64_t> sums) {
    const Index row_bytes = array.width * size_of(array.type);
    for (Index begin = own.begin; begin < own.end;) {
        const Index block = begin / block_rows;
        const Index end = std::min(own.end, (block + 1) * block_rows);
        const std::byte* at = data + (begin - own.begin) * row_bytes;
        const Index count = (end - begin) * array.width;
        const Index first = begin * array.width;
        sums[static_cast<std::size_t>(block)] +=
            array.type == H5Type::float32
                ? checksum_of(reinterpret_cast<const float*>(at), count, first)
                : checksum_of(reinterpret_cast<const Index*>(at), count, first);
        begin = end;
    }
}

Index first_not_finite(const CheckpointArray& array, Shard own, const std::byte* data) {
    if (array.type != H5Type::float32) return all_finite;
    const auto* values = reinterpret_cast<const std::uint32_t*>(data);
    const Index count = own.size() * array.width;
    constexpr std::uint32_t magnitude = 0x7FFFFFFFU;
    constexpr std::uint32_t infinity = 0x7F800000U;
    // Magnitudes order as their bits; NaN and infinity come last.
    constexpr Index piece = 4096;
    for (Index at = 0; at < count; at += piece) {
        const Index end = std::min(count, at + piece);
        std::uint32_t largest = 0;
        for (Index i = at; i < end; ++i) largest = std::max(largest, values[i] & magnitude);
        if (largest < infinity) continue;
        for (Index i = at; i < end; ++i)
            if ((values[i] & magnitude) >= infinity) return own.begin * array.width + i;
    }
    return all_finite;
}

std::string not_finite_text(const CheckpointArray& array, Index place) {
    return fmt::format("array {} is NaN or infinite in row {}, column {}", array.name,
                       place / array.width, place % array.width);
}

std::string damaged_block_text(const StoredArray& array, std::size_t block) {
    const Index begin = static_cast<Index>(block) * array.block_rows;
    return fmt::format("array {}, rows {} to {}, does not match its checksum", array.stored_name,
                       begin, std::min(array.rows, begin + array.block_rows) - 1);
}

CheckpointTexts make_texts(const CheckpointSnapshot& snapshot) {
    const CheckpointState& state = snapshot.state();
    ModelConfig model = snapshot.model();
    FieldsToJson fields;
    model.fields(fields);
    nlohmann::ordered_json header;
    header["format_version"] = checkpoint_format_version;
    header["step"] = state.step;
    header["tokens"] = state.tokens;
    header["layers"] = snapshot.shape().layers;
    header["d_model"] = snapshot.shape().d_model;
    header["features"] = snapshot.shape().features;
    header["model"] = fields.object;
    header["batchtopk_threshold"] = {{"last", state.threshold.last},
                                     {"running", state.threshold.running}};
    header["data"] = {{"fingerprint", state.data.fingerprint},
                      {"language_model", state.data.language_model},
                      {"input_tap", state.data.input_tap},
                      {"target_tap", state.data.target_tap},
                      {"layer_ids", state.data.layer_ids},
                      {"normalization", state.data.normalization.method}};
    header["revision"] = revision();
    header["arrays"] = nlohmann::ordered_json::array();
    for (const SnapshotArray& array : snapshot.arrays())
        header["arrays"].push_back({{"name", array.name},
                                    {"type", name_of(array.type)},
                                    {"rows", array.rows},
                                    {"width", array.width},
                                    {"role", name_of(array.role)},
                                    {"block_rows", block_rows_of(array)}});
    return {header.dump(), state.cursor, state.job, state.extra, {}};
}

void seal(CheckpointTexts& texts, const std::vector<std::uint64_t>& block_sums) {
    const nlohmann::ordered_json sums = {{"texts", hexadecimal(checksum_of(texts))},
                                         {"blocks", hexadecimal(checksum_of(block_sums))}};
    texts.checksums = sums.dump();
}

CheckpointTexts broadcast(const CheckpointTexts& texts, const Communicator& communicator) {
    return {communicator.broadcast(texts.header), communicator.broadcast(texts.cursor),
            communicator.broadcast(texts.job), communicator.broadcast(texts.extra),
            communicator.broadcast(texts.checksums)};
}

StoredHeader broadcast(StoredHeader stored, const Communicator& communicator) {
    stored.texts = broadcast(stored.texts, communicator);
    stored.bytes = communicator.broadcast(stored.bytes);
    const auto send = [&](auto& values) {
        values.resize(communicator.broadcast(values.size()));
        communicator.broadcast(std::span(values));
    };
    send(stored.block_sums);
    send(stored.normalization);
    return stored;
}

void write_texts(H5File& file, const CheckpointTexts& texts) {
    file.write_text("clt_checkpoint", texts.header);
    file.write_text("cursor", texts.cursor);
    file.write_text("job", texts.job);
    file.write_text("extra", texts.extra);
    file.write_text("checksums", texts.checksums);
}

CheckpointHeader header_from(const std::string& path, const StoredHeader& stored) {
    const JsonObject json = JsonObject::parse(stored.texts.header, path + ": clt_checkpoint");
    CheckpointHeader header;
    header.path = path;
    header.format_version =
        static_cast<int>(json.integer("format_version", 1, checkpoint_format_version));
    header.shape.layers = json.integer("layers", 1);
    header.shape.d_model = json.integer("d_model", 1);
    header.shape.features = json.integer("features", 1);
    header.revision = json.text("revision");
    const JsonObject model = json.object("model");
    FieldsFromJson fields{model};
    header.model.fields(fields);
    header.seal = stored.texts.checksums;
    header.bytes = stored.bytes;
    CheckpointState& state = header.state;
    state.step = json.integer("step", 0);
    state.tokens = json.integer("tokens", 0);
    state.cursor = stored.texts.cursor;
    state.job = stored.texts.job;
    state.extra = stored.texts.extra;
    const JsonObject threshold = json.object("batchtopk_threshold");
    state.threshold = {threshold.finite("last"), threshold.finite("running")};
    read_training_data(json.object("data"), stored, header);
    header.arrays = arrays_of(json);
    if (stored.block_sums.empty()) return header;
    auto next = stored.block_sums.begin();
    for (StoredArray& array : header.arrays) {
        const auto end = next + blocks_of(array, array.block_rows);
        array.block_sums.assign(next, end);
        next = end;
    }
    return header;
}

StoredHeader load_header(const std::string& path) {
    const Index bytes = readable_bytes(path);  // no permission, a dead disk: not damage
    try {
        StoredHeader stored = load(H5File::open(path));
        stored.bytes = bytes;
        return stored;
    } catch (const InternalError&) {
        throw;
    } catch (const NewerCheckpoint&) {
        throw;
    } catch (const std::exception& e) {
        const std::string words = e.what();
        if (system_refused(words)) throw;
        throw DamagedCheckpoint(words.starts_with(path) ? words
                                                        : fmt::format("{}: {}", path, words));
    }
}

std::vector<NormalizationArray> normalization_arrays(const Normalization& normalization) {
    std::vector<NormalizationArray> arrays;
    if (normalization.method != "mean_std") return arrays;
    for (const bool targets : {false, true})
        for (const bool deviations : {false, true}) {
            NormalizationArray array;
            array.name = fmt::format("normalization/{}/{}", targets ? "targets" : "inputs",
                                     deviations ? "std" : "mean");
            array.rows = normalization.layers;
            array.width = normalization.d_model;
            array.role = ArrayRole::replicated;
            for (const LayerStats& layer : normalization.stats) {
                const ColumnStats& columns = targets ? layer.targets : layer.inputs;
                const std::vector<float>& values = deviations ? columns.std : columns.mean;
                array.values.insert(array.values.end(), values.begin(), values.end());
            }
            arrays.push_back(std::move(array));
        }
    return arrays;
}

}  // namespace clt
