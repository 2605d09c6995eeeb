#include "clt/io/safetensors.hpp"

#include <fcntl.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "clt/base/error.hpp"
#include "clt/io/content.hpp"
#include "clt/io/descriptor.hpp"
#include "clt/io/json.hpp"

namespace clt {
namespace {

static_assert(std::endian::native == std::endian::little, "files are read without byte swaps");

constexpr Index prefix_bytes = 8;
constexpr const char* metadata_key = "__metadata__";
constexpr Index max_header_bytes = 100'000'000;  // the format's own limit

// Bytes of an element; nothing for a type this page does not know (its size cannot be checked).
std::optional<Index> element_bytes(const std::string& dtype) {
    static const std::map<std::string, Index> known = {
        {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
        {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
        {"U32", 4},  {"F32", 4}, {"I64", 8}, {"U64", 8},     {"F64", 8}};
    const auto found = known.find(dtype);
    return found == known.end() ? std::nullopt : std::optional(found->second);
}

SafetensorsEntry parse_entry(const std::string& where, const JsonObject& value, Index data) {
    SafetensorsEntry entry;
    entry.dtype = value.text("dtype");
    entry.shape = value.integers("shape", 0);
    const std::vector<Index> offsets = value.integers("data_offsets", 0);
    if (offsets.size() != 2 || offsets[1] < offsets[0])
        user_error("{}: data_offsets must be two ascending numbers", where);
    if (offsets[1] > std::numeric_limits<Index>::max() - data)
        user_error("{}: data_offsets end beyond any file", where);
    entry.begin = data + offsets[0];
    entry.end = data + offsets[1];
    const std::optional<Index> bytes = element_bytes(entry.dtype);
    Index expected = bytes.value_or(0);
    bool fits = true;
    for (const Index extent : entry.shape)
        fits = fits && !__builtin_mul_overflow(expected, extent, &expected);
    if (!fits || (bytes && expected != entry.end - entry.begin))
        user_error("{}: {} of shape [{}] does not take the {} bytes of its data_offsets", where,
                   entry.dtype, fmt::join(entry.shape, ", "), entry.end - entry.begin);
    return entry;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path) {
    const Descriptor file(path, O_RDONLY, "read");
    const Index length = file.size();
    std::string head(static_cast<std::size_t>(std::min(length, content_bytes)), '\0');
    file.read_at(0, head.data(), static_cast<Index>(head.size()));
    if (head.empty()) user_error("{}: is empty (0 bytes): it was not fetched whole", path);
    constexpr std::size_t least_signature = 4;  // the first bytes of a header's length are anything
    const auto content = content_of(head, least_signature);
    if (content && content->what != "a safetensors file")
        user_error("{}: holds {}, expected a safetensors file", path, sentence_of(*content, path));
    std::uint64_t announced = 0;
    if (length < prefix_bytes)
        user_error("{}: {} bytes are too few for a safetensors file", path, length);
    std::memcpy(&announced, head.data(), prefix_bytes);
    if (announced > static_cast<std::uint64_t>(max_header_bytes))
        user_error("{}: not a safetensors file (its header would take {} bytes)", path, announced);
    const auto header_bytes = static_cast<Index>(announced);
    if (header_bytes > length - prefix_bytes)
        user_error("{}: the header takes {} bytes but the file ends after {}: it is cut", path,
                   prefix_bytes + header_bytes, length);
    std::string text(static_cast<std::size_t>(header_bytes), '\0');
    file.read_at(prefix_bytes, text.data(), header_bytes);
    const JsonObject header = JsonObject::parse(text, path + ": the header");

    const Index data = prefix_bytes + header_bytes;
    std::vector<std::pair<Index, std::string>> order;
    for (const auto& [name, value] : header.json().items()) {
        if (name == metadata_key) {
            const JsonObject metadata = header.object(metadata_key);
            for (const auto& [key, unused] : metadata.json().items())
                metadata_[key] = metadata.text(key);
            continue;
        }
        const std::string where = fmt::format("{}: tensor \"{}\"", path, name);
        const auto& entry = entries_[name] =
            parse_entry(where, header.object(name, fmt::format("tensor \"{}\" ", name)), data);
        // An empty tensor sorts before the one that starts where it ends.
        order.emplace_back(entry.begin + (entry.end > entry.begin ? 1 : 0), name);
    }
    // Every byte belongs to exactly one tensor: a hole may hide data, an overlap corrupts it.
    std::sort(order.begin(), order.end());
    Index at = data;
    for (const auto& [unused, name] : order) {
        const SafetensorsEntry& entry = entries_[name];
        if (entry.begin != at)
            user_error("{}: tensor \"{}\" starts at byte {}, expected {}: tensors {}", path, name,
                       entry.begin, at, entry.begin < at ? "overlap" : "leave a hole");
        at = entry.end;
    }
    if (at != length)
        user_error("{}: its tensors end at byte {} but the file has {} bytes{}", path, at, length,
                   at > length ? ": it is cut" : "");
}

std::vector<float> SafetensorsFile::read(const std::string& name) const {
    const auto found = entries_.find(name);
    if (found == entries_.end()) user_error("{}: has no tensor \"{}\"", path_, name);
    const SafetensorsEntry& entry = found->second;
    std::optional<DType> type;
    if (entry.dtype == "F32") type = DType::float32;
    if (entry.dtype == "F16") type = DType::float16;
    if (entry.dtype == "BF16") type = DType::bfloat16;
    const Descriptor file(path_, O_RDONLY, "read");
    if (entry.dtype == "F64") {
        std::vector<double> wide(static_cast<std::size_t>((entry.end - entry.begin) / 8));
        file.read_at(entry.begin, wide.data(), entry.end - entry.begin);
        return {wide.begin(), wide.end()};
    }
    if (!type)
        user_error("{}: tensor \"{}\" is {}, expected F64, F32, F16 or BF16", path_, name,
                   entry.dtype);

    const Index count = (entry.end - entry.begin) / size_of(*type);
    std::vector<float> values(static_cast<std::size_t>(count));
    if (*type == DType::float32) {
        file.read_at(entry.begin, values.data(), entry.end - entry.begin);
        return values;
    }
    constexpr Index piece = Index{1} << 22;
    std::vector<std::uint16_t> staging(static_cast<std::size_t>(std::min(piece, count)));
    for (Index at = 0; at < count; at += piece) {
        const Index part = std::min(piece, count - at);
        file.read_at(entry.begin + at * 2, staging.data(), part * 2);
        to_float(*type, staging.data(), values.data() + at, part);
    }
    return values;
}

}  // namespace clt
