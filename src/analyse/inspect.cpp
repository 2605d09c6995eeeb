#include "clt/analyse/inspect.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>

#include "analyse/inspect_parts.hpp"
#include "clt/base/error.hpp"
#include "clt/io/file.hpp"
#include "clt/io/hdf5.hpp"
#include "clt/train/checkpoint.hpp"

namespace clt {
namespace {

namespace fs = std::filesystem;

enum class Kind : int { dataset, run, checkpoint, chunk, safetensors };

bool holds_checkpoints(const std::string& folder) {
    const std::vector<std::string> names = names_in(folder);
    return std::any_of(names.begin(), names.end(), [](const std::string& name) {
        return CheckpointName::parse(name).has_value();
    });
}

// Rank 0 alone.
Kind kind_of(const std::string& path) {
    if (!path_exists(path)) user_error("{}: no such file or folder", path);
    if (is_folder(path)) {
        if (path_exists(path + "/metadata.json")) return Kind::dataset;
        if (path_exists(path + "/checkpoints") || holds_checkpoints(path)) return Kind::run;
        user_error(
            "{}: a folder, but neither an activation data set (no metadata.json) nor a run (no "
            "checkpoints)",
            path);
    }
    if (path.ends_with(".safetensors")) return Kind::safetensors;
    const H5File file = H5File::open(path);
    if (file.read_text("clt_checkpoint")) return Kind::checkpoint;
    for (const std::string& name : file.children())
        if (name.starts_with("layer_")) return Kind::chunk;
    user_error("{}: an HDF5 file, but neither a checkpoint nor a chunk of activations; it holds {}",
               path, fmt::join(file.children(), ", "));
}

}  // namespace

Index first_not_finite(DType type, const void* values, Index n) {
    // All exponent bits set: NaN or infinity.
    if (type == DType::float32) {
        const auto* v = static_cast<const float*>(values);
        for (Index i = 0; i < n; ++i)
            if (!std::isfinite(v[i])) return i;
        return n;
    }
    const unsigned exponent = type == DType::float16 ? 0x7C00U : 0x7F80U;
    const auto* v = static_cast<const std::uint16_t*>(values);
    for (Index i = 0; i < n; ++i)
        if ((v[i] & exponent) == exponent) return i;
    return n;
}

std::string bytes_text(Index bytes) {
    constexpr std::array<const char*, 5> units = {"bytes", "kB", "MB", "GB", "TB"};
    auto value = static_cast<double>(bytes);
    std::size_t unit = 0;
    for (; value >= 1000 && unit + 1 < units.size(); ++unit) value /= 1000;
    return unit == 0 ? fmt::format("{} bytes", bytes)
                     : fmt::format("{:.3g} {}", value, units[unit]);
}

Index file_bytes(const std::string& path) {
    std::error_code code;
    const auto bytes = fs::file_size(path, code);
    return code ? 0 : static_cast<Index>(bytes);
}

std::string file_name(const std::string& path) {
    return fs::path(path).filename().string();
}

std::string inspect(const std::string& path, bool verify, const Communicator& communicator) {
    int kind = 0;
    communicator.together([&] {
        if (communicator.rank() == 0) kind = static_cast<int>(kind_of(path));
    });
    kind = communicator.broadcast(kind);
    Inspection inspection;
    switch (static_cast<Kind>(kind)) {
        case Kind::dataset:
            inspection = inspect_dataset(path, verify, communicator);
            break;
        case Kind::run:
            inspection = inspect_run(path, verify, communicator);
            break;
        case Kind::checkpoint:
            inspection = inspect_checkpoint_file(path, verify, communicator);
            break;
        case Kind::chunk:
            inspection = inspect_chunk(path, verify, communicator);
            break;
        case Kind::safetensors:
            inspection = inspect_safetensors(path, verify, communicator);
            break;
    }
    if (inspection.problems.size() == 1) throw UserError(inspection.problems.front());
    if (!inspection.problems.empty())
        user_error("{}: {} problems:\n  {}", path, inspection.problems.size(),
                   fmt::join(inspection.problems, "\n  "));
    if (verify) inspection.lines.emplace_back("verified: everything was read, no problem found");
    return communicator.broadcast(fmt::format("{}\n", fmt::join(inspection.lines, "\n")));
}

}  // namespace clt
