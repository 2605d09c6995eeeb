// The checkpoints of a run: which to go on from, which may go.
#include <algorithm>
#include <charconv>
#include <filesystem>

#include "clt/base/error.hpp"
#include "clt/base/log.hpp"
#include "clt/io/file.hpp"
#include "train/checkpoint_format.hpp"

namespace clt {
namespace {

namespace fs = std::filesystem;

struct Found {
    Index step;
    std::string path;
};

// Newest first. Names that are not ours are left alone.
std::vector<Found> list_checkpoints(const std::string& folder) {
    std::vector<Found> found;
    std::error_code code;
    for (fs::directory_iterator entry(folder, code), end; !code && entry != end;
         entry.increment(code))
        if (const auto name = CheckpointName::parse(entry->path().filename().string()))
            found.push_back({name->step, entry->path().string()});
    if (code) user_error("{}: the folder cannot be read: {}", folder, code.message());
    std::sort(found.begin(), found.end(),
              [](const Found& a, const Found& b) { return a.step > b.step; });
    return found;
}

// Throws DamagedCheckpoint when the file is not what its name says.
StoredHeader load_named(const Found& file) {
    StoredHeader stored = load_header(file.path);
    const Index step = header_from(file.path, stored).state.step;
    if (step != file.step)
        throw DamagedCheckpoint(
            fmt::format("{}: the checkpoint of step {} under another name", file.path, step));
    return stored;
}

void remove_or_warn(const std::string& path) {
    std::error_code code;
    fs::remove(path, code);
    if (code) log_warning("{}: cannot be removed: {}", path, code.message());
}

}  // namespace

std::optional<CheckpointName> CheckpointName::parse(std::string_view file_name) {
    constexpr std::string_view prefix = "step_";
    CheckpointName name;
    if (!file_name.starts_with(prefix)) return std::nullopt;
    std::from_chars(file_name.data() + prefix.size(), file_name.data() + file_name.size(),
                    name.step);
    if (name.step < 0 || name.text() != file_name) return std::nullopt;
    return name;
}

FoundCheckpoint find_newest_checkpoint(const std::string& folder,
                                       const Communicator& communicator) {
    FoundCheckpoint result;
    std::vector<Found> files;
    communicator.together([&] {
        if (communicator.rank() == 0) files = list_checkpoints(folder);
    });
    const auto count = communicator.broadcast(files.size());
    const auto pass_over = [&](const std::string& path, const std::string& why) {
        result.passed_over.push_back(fs::path(path).filename().string());
        if (communicator.rank() == 0)
            log_warning("passing over a checkpoint that is not whole: {}", why);
    };
    for (std::size_t i = 0; i < count; ++i) {
        const std::string path =
            communicator.broadcast(communicator.rank() == 0 ? files[i].path : std::string());
        StoredHeader stored;
        std::string damage;
        communicator.together([&] {
            if (communicator.rank() != 0) return;
            try {
                stored = load_named(files[i]);
            } catch (const DamagedCheckpoint& e) {
                damage = e.what();
            } catch (const UserError& e) {
                user_error("{} (to go on from an older checkpoint, move this one away)", e.what());
            }
        });
        damage = communicator.broadcast(damage);
        if (!damage.empty()) {
            pass_over(path, damage);
            continue;
        }
        CheckpointHeader header = header_from(path, broadcast(std::move(stored), communicator));
        const std::vector<std::string> problems = verify_checkpoint(header, communicator);
        if (problems.empty()) {
            result.newest = std::move(header);
            return result;
        }
        pass_over(path, problems.front());
    }
    return result;
}

CheckpointKeeper::CheckpointKeeper(std::string folder, const CheckpointHeader* resumed_from)
    : folder_(std::move(folder)) {
    if (resumed_from == nullptr) return;
    verified_.push_back({resumed_from->state.step, resumed_from->bytes, resumed_from->seal});
}

void CheckpointKeeper::written(const VerifiedCheckpoint& checkpoint) {
    std::erase_if(verified_, [&](const auto& other) { return other.step == checkpoint.step; });
    verified_.push_back(checkpoint);
}

// Length and seal: cheap, and no longer true when anybody has touched the file's texts or cut it.
bool CheckpointKeeper::still_there(const VerifiedCheckpoint& checkpoint) const {
    const std::string path = (fs::path(folder_) / CheckpointName{checkpoint.step}.text()).string();
    try {
        const StoredHeader stored = load_header(path);
        return stored.bytes == checkpoint.bytes && stored.texts.checksums == checkpoint.seal;
    } catch (const UserError& e) {
        log_warning("{}; it does not count as kept", e.what());
        return false;
    }
}

void CheckpointKeeper::prune(Index keep, Index best_step) {
    std::erase_if(verified_, [&](const auto& checkpoint) { return !still_there(checkpoint); });
    std::vector<Index> whole;
    for (const VerifiedCheckpoint& checkpoint : verified_) whole.push_back(checkpoint.step);
    std::sort(whole.rbegin(), whole.rend());
    const bool enough = static_cast<Index>(whole.size()) >= keep;
    const Index oldest_kept = enough ? whole[static_cast<std::size_t>(keep - 1)] : 0;

    for (const Found& file : list_checkpoints(folder_)) {
        if (!enough || file.step >= oldest_kept || file.step == best_step) continue;
        try {
            load_named(file);
        } catch (const UserError&) {
            continue;  // damaged, foreign, renamed: somebody may want to look at it
        }
        remove_or_warn(file.path);
        std::erase_if(verified_, [&](const auto& mine) { return mine.step == file.step; });
    }
    for (const std::string& name : names_in(folder_))
        if (name.ends_with(".tmp") && CheckpointName::parse(name.substr(0, name.size() - 4)))
            remove_or_warn((fs::path(folder_) / name).string());
}

}  // namespace clt
