#include "train/checkpoint_format.hpp"

#include <charconv>

#include "clt/base/checksum.hpp"
#include "clt/base/error.hpp"
#include "clt/base/version.hpp"
#include "clt/io/json.hpp"

namespace clt {
namespace {

constexpr const char* texts_entry = "texts";

// Format 1: byte by byte.
std::uint64_t checksum_of_text(const std::string& text) {
    std::uint64_t sum = mix(0, text.size());
    for (std::size_t i = 0; i < text.size(); ++i)
        sum += mix(i + 1, static_cast<unsigned char>(text[i]));
    return sum;
}

// Each text by its own salt: a part that moves from one to the next shows.
std::uint64_t checksum_of(const CheckpointTexts& texts) {
    std::uint64_t sum = 0;
    for (const std::string* text : {&texts.header, &texts.cursor, &texts.job, &texts.extra})
        sum = mix(sum, checksum_of_text(*text));
    return sum;
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
    template <class T>
    void operator()(const char* name, T& value, const FieldRule&, const char*) {
        if (object.has(name)) read(name, value);
    }
    void read(const char* name, Index& value) { value = object.integer(name); }
    void read(const char* name, double& value) { value = object.finite(name); }
    void read(const char* name, bool& value) { value = object.flag(name); }
    void read(const char* name, std::string& value) { value = object.text(name); }
};

JsonObject parse_attribute(const std::string& path, const char* name, const std::string& text) {
    return JsonObject::parse(text, fmt::format("{}: the checkpoint's attribute {}", path, name));
}

}  // namespace

CheckpointTexts make_texts(const Shape& shape, const ModelConfig& model,
                           const CheckpointState& state) {
    ModelConfig copy = model;
    FieldsToJson fields;
    copy.fields(fields);
    nlohmann::ordered_json header;
    header["format_version"] = checkpoint_format_version;
    header["step"] = state.step;
    header["layers"] = shape.layers;
    header["d_model"] = shape.d_model;
    header["features"] = shape.features;
    header["activation"] = model.activation;
    header["model"] = fields.object;
    header["revision"] = revision();
    return {header.dump(), state.cursor, state.job, state.extra, {}};
}

void seal(CheckpointTexts& texts, const Checksums& arrays) {
    nlohmann::ordered_json sums;
    sums[texts_entry] = hexadecimal(checksum_of(texts));
    for (const auto& [name, sum] : arrays) sums[name] = hexadecimal(sum);
    texts.checksums = sums.dump();
}

CheckpointTexts broadcast(const CheckpointTexts& texts, const Communicator& communicator) {
    return {communicator.broadcast(texts.header), communicator.broadcast(texts.cursor),
            communicator.broadcast(texts.job), communicator.broadcast(texts.extra),
            communicator.broadcast(texts.checksums)};
}

void write_texts(H5File& file, const CheckpointTexts& texts) {
    file.write_text("clt_checkpoint", texts.header);
    file.write_text("cursor", texts.cursor);
    file.write_text("job", texts.job);
    file.write_text("extra", texts.extra);
    file.write_text("checksums", texts.checksums);
}

CheckpointTexts read_texts(const H5File& file) {
    const std::optional<std::string> header = file.read_text("clt_checkpoint");
    if (!header) user_error("{}: an HDF5 file, but no checkpoint of clt", file.path());
    CheckpointTexts texts;
    texts.header = *header;
    texts.cursor = file.read_text("cursor").value_or("");
    texts.job = file.read_text("job").value_or("");
    texts.extra = file.read_text("extra").value_or("");
    texts.checksums = file.read_text("checksums").value_or("");
    if (checksums_from(file.path(), texts).at(texts_entry) != checksum_of(texts))
        user_error("{}: the checkpoint is damaged: its attributes do not match their checksum",
                   file.path());
    return texts;
}

CheckpointInfo info_from(const std::string& path, const CheckpointTexts& texts) {
    const JsonObject header = parse_attribute(path, "clt_checkpoint", texts.header);
    if (const Index version = header.integer("format_version");
        version != checkpoint_format_version)
        user_error("{}: checkpoint format {}, this clt reads format {}", path, version,
                   checkpoint_format_version);
    CheckpointInfo info;
    info.path = path;
    info.step = header.integer("step", 0);
    info.shape.layers = header.integer("layers", 1);
    info.shape.d_model = header.integer("d_model", 1);
    info.shape.features = header.integer("features", 1);
    info.activation = header.text("activation");
    info.revision = header.text("revision");
    const JsonObject model = header.object("model");
    FieldsFromJson fields{model};
    info.model.fields(fields);
    info.state = {info.step, texts.cursor, texts.job, texts.extra};
    return info;
}

Checksums checksums_from(const std::string& path, const CheckpointTexts& texts) {
    const JsonObject parsed = parse_attribute(path, "checksums", texts.checksums);
    Checksums sums;
    for (const auto& [name, unused] : parsed.json().items()) {
        const std::string text = parsed.text(name);
        const char* const end = text.data() + text.size();
        if (std::from_chars(text.data(), end, sums[name], 16).ptr != end || text.empty())
            parsed.refuse(name, "a hexadecimal number");
    }
    if (!sums.contains(texts_entry))
        user_error("{}: the checkpoint's attribute checksums is damaged: no entry \"{}\"", path,
                   texts_entry);
    return sums;
}

}  // namespace clt
