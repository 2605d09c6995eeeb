#include "clt/io/folder_lock.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <sstream>
#include <thread>
#include <vector>

#include "clt/base/log.hpp"
#include "clt/base/stop.hpp"
#include "clt/io/descriptor.hpp"

namespace clt {
namespace {

using nlohmann::ordered_json;

// A holder touches its lock so often; without a sign of life for the time below it counts as gone.
// Network file systems show a change to other hosts after up to a minute.
constexpr std::chrono::seconds heartbeat{10};
constexpr double silence_limit_s = 180;

std::string first_line(const std::string& path) {
    std::string line;
    std::getline(std::ifstream(path), line);
    return line;
}

std::string variable(const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
}

std::string link_target(const char* path) {
    std::array<char, 256> target{};
    const ssize_t length = ::readlink(path, target.data(), target.size());
    return length < 0 ? "" : std::string(target.data(), static_cast<std::size_t>(length));
}

/// Fields 3 on of a process's stat (state, parent, ...); empty: it cannot be read.
std::vector<std::string> stat_of(long long pid) {
    const std::string stat = first_line(fmt::format("/proc/{}/stat", pid));
    const std::size_t name_end = stat.rfind(')');  // the name may hold anything
    std::vector<std::string> fields;
    if (name_end == std::string::npos) return fields;
    std::istringstream rest(stat.substr(name_end + 1));
    for (std::string field; rest >> field;) fields.push_back(field);
    return fields;
}

/// When a process began (field 22, clock ticks since boot): tells it from another that got its
/// number.
std::string start_of(const std::vector<std::string>& stat) {
    return stat.size() > 19 ? stat[19] : "";
}

bool runs(long long pid, const std::string& start) {
    const std::vector<std::string> stat = stat_of(pid);
    // Other users' processes may be hidden.
    if (stat.empty()) return ::kill(static_cast<pid_t>(pid), 0) == 0 || errno == EPERM;
    return stat[0] != "Z" && stat[0] != "X" && start_of(stat) == start;
}

// What a lock says of its holder. Processes are told apart by number and start where two have the
// same kernel and the same process namespace (a container has its own).
struct Holder {
    std::string host, kernel, start, slurm_cluster, slurm_job, slurm_step, slurm_restarts, since,
        key;
    long long pid = 0;

    bool operator==(const Holder& other) const { return key == other.key; }

    std::string text() const {
        return ordered_json{{"host", host},
                            {"kernel", kernel},
                            {"process", pid},
                            {"process_start", start},
                            {"slurm_cluster", slurm_cluster},
                            {"slurm_job", slurm_job},
                            {"slurm_step", slurm_step},
                            {"slurm_restarts", slurm_restarts},
                            {"since", since},
                            {"key", key}}
            .dump();
    }

    std::string name() const {
        if (pid == 0) return "an unknown process";
        return fmt::format("process {} on host {}{}", pid, host,
                           slurm_job.empty() ? "" : fmt::format(" (SLURM job {})", slurm_job));
    }

    static Holder of(const std::string& text) {
        Holder holder;
        const auto json = nlohmann::json::parse(text, nullptr, false);
        const auto take = [&](const char* name_in_file, auto& value) {
            if (!json.is_object() || !json.contains(name_in_file)) return;
            try {
                json[name_in_file].get_to(value);
            } catch (const nlohmann::json::exception&) {
                return;  // not ours: only its age counts
            }
        };
        take("host", holder.host);
        take("kernel", holder.kernel);
        take("process", holder.pid);
        take("process_start", holder.start);
        take("slurm_cluster", holder.slurm_cluster);
        take("slurm_job", holder.slurm_job);
        take("slurm_step", holder.slurm_step);
        take("slurm_restarts", holder.slurm_restarts);
        take("since", holder.since);
        take("key", holder.key);
        return holder;
    }

    static Holder myself() {
        Holder holder;
        std::array<char, 256> host{};
        ::gethostname(host.data(), host.size() - 1);
        holder.host = host.data();
        holder.kernel =
            first_line("/proc/sys/kernel/random/boot_id") + " " + link_target("/proc/self/ns/pid");
        holder.pid = ::getpid();
        holder.start = start_of(stat_of(holder.pid));
        holder.slurm_cluster = variable("SLURM_CLUSTER_NAME");
        holder.slurm_job = variable("SLURM_JOB_ID");
        holder.slurm_step = variable("SLURM_STEP_ID");
        holder.slurm_restarts = variable("SLURM_RESTART_COUNT");
        const std::time_t now = std::time(nullptr);
        std::array<char, 32> text{};
        std::tm fields{};
        std::strftime(text.data(), text.size(), "%FT%TZ", ::gmtime_r(&now, &fields));
        holder.since = text.data();
        std::random_device random;
        holder.key = fmt::format("{:08x}{:08x}", random(), random());
        return holder;
    }
};

/// What a program prints; nothing when there is no such program or it fails.
std::optional<std::string> output_of(const std::vector<std::string>& words) {
    std::array<int, 2> pipe{};
    if (::pipe2(pipe.data(), O_CLOEXEC) != 0) return std::nullopt;
    std::vector<char*> arguments;
    for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, pipe[1], STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&files, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawnattr_t attributes;  // our own blocked signals are not its
    posix_spawnattr_init(&attributes);
    sigset_t none;
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    pid_t child = 0;
    const int failed =
        ::posix_spawnp(&child, arguments[0], &files, &attributes, arguments.data(), environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&files);
    ::close(pipe[1]);
    std::string text;
    std::array<char, 4096> part{};
    for (ssize_t got = 0; failed == 0;) {
        got = ::read(pipe[0], part.data(), part.size());
        if (got > 0) text.append(part.data(), static_cast<std::size_t>(got));
        if (got == 0 || (got < 0 && errno != EINTR)) break;
    }
    ::close(pipe[0]);
    if (failed != 0) return std::nullopt;
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return std::nullopt;
    return text;
}

/// SLURM lists the steps that run, and the holder's is not among them.
bool slurm_step_has_ended(const Holder& holder, const Holder& self) {
    if (holder.slurm_job.empty() || holder.slurm_step.empty() ||
        holder.slurm_cluster != self.slurm_cluster)
        return false;
    const auto steps = output_of({"squeue", "--noheader", "--steps", "--format=%i"});
    if (!steps) return false;
    const std::string wanted = fmt::format("\n{}.{}\n", holder.slurm_job, holder.slurm_step);
    return ("\n" + *steps).find(wanted) == std::string::npos;
}

/// Why the holder is gone; empty: it may well be alive. silent_s: since its last sign of life.
std::string why_gone(const Holder& holder, const Holder& self, double silent_s) {
    if (holder.kernel == self.kernel && holder.pid > 0)
        return runs(holder.pid, holder.start) ? "" : "does not run any more";
    if (!holder.slurm_job.empty() && holder.slurm_job == self.slurm_job &&
        holder.slurm_cluster == self.slurm_cluster && holder.slurm_restarts != self.slurm_restarts)
        return "was this job's run before it was requeued";
    if (silent_s > silence_limit_s)
        return fmt::format("has given no sign of life for {:.0f} s", silent_s);
    if (slurm_step_has_ended(holder, self)) return "was of a SLURM step that has ended";
    return "";
}

struct Found {
    Holder holder;
    double silent_s = 0;
};

std::string beside(const std::string& path, const std::string& what) {
    return fmt::format("{}.{}", path, what);
}

/// Makes the file with this text in one go: by a hard link, so that nobody sees it half written,
/// and network file systems do it right. False: there is one.
bool make_whole(const std::string& path, const Holder& self) {
    const std::string own = beside(path, self.key);
    {
        const std::string text = self.text();
        Descriptor file(own, O_WRONLY | O_CREAT | O_EXCL, "written");
        file.write_all(text.data(), static_cast<Index>(text.size()));
        file.close();
    }
    bool linked = ::link(own.c_str(), path.c_str()) == 0;
    int why = errno;
    struct stat status {
    };  // the answer of a network file system may have been lost: count the links
    linked = linked || (::stat(own.c_str(), &status) == 0 && status.st_nlink == 2);
    if (!linked && why != EEXIST) {
        // A file system without hard links: O_EXCL as the second best.
        const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        why = errno;
        if (descriptor >= 0) {
            ::close(descriptor);
            why = std::rename(own.c_str(), path.c_str()) == 0 ? 0 : errno;
        }
    } else if (linked) {
        why = 0;
    }
    ::unlink(own.c_str());
    if (why != 0 && why != EEXIST) {
        errno = why;
        file_error(path, "written");
    }
    return why == 0;
}

/// Nothing: there is no such file. now: a file just made, by the file system's own clock.
std::optional<Found> look_at(const std::string& path, const Holder& self) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        if (errno == ENOENT) return std::nullopt;
        file_error(path, "read");
    }
    std::array<char, 4096> text{};
    const ssize_t length = ::read(descriptor, text.data(), text.size());
    struct stat status {};
    ::fstat(descriptor, &status);
    ::close(descriptor);
    Found found;
    found.holder =
        Holder::of(std::string(text.data(), length > 0 ? static_cast<std::size_t>(length) : 0));
    const std::string probe = beside(path, self.key);
    Descriptor(probe, O_WRONLY | O_CREAT, "written").close();
    struct stat now {};
    ::stat(probe.c_str(), &now);
    ::unlink(probe.c_str());
    found.silent_s = static_cast<double>(now.st_mtime - status.st_mtime);
    return found;
}

/// Takes the lock or throws. A lock whose holder is gone is removed under a lock of its own, named
/// after that holder: so of two who find it, one removes it, and never the new one of the other.
void take(const std::string& folder, const std::string& path, const Holder& self) {
    while (!make_whole(path, self)) {
        const std::optional<Found> found = look_at(path, self);
        if (!found) continue;
        const std::string why = why_gone(found->holder, self, found->silent_s);
        if (why.empty())
            user_error(
                "{}: is in use by {}, since {}, which gave its last sign of life {:.0f} s ago: "
                "wait "
                "for its end, stop it, or choose another folder (should it be gone, remove {})",
                folder, found->holder.name(),
                found->holder.since.empty() ? "an unknown time" : found->holder.since,
                found->silent_s, path);
        const std::string guard =
            beside(path, "of-" + (found->holder.key.empty() ? "unknown" : found->holder.key));
        take(folder, guard, self);
        const std::optional<Found> still = look_at(path, self);
        if (still && still->holder == found->holder) {
            ::unlink(path.c_str());
            log_info("{}: taken over from {}, which {}", folder, found->holder.name(), why);
        }
        ::unlink(guard.c_str());
    }
}

}  // namespace

// A lock in our hands: a thread gives signs of life.
class FolderLock::Held {
  public:
    explicit Held(const std::string& folder)
        : folder_(folder), path_(folder + "/.lock"), self_(Holder::myself()) {
        take(folder_, path_, self_);
        last_act_ = add_last_act([this] { remove(); });
        thread_ = std::thread([this] { give_signs_of_life(); });
    }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    ~Held() {
        {
            const std::lock_guard lock(mutex_);
            over_ = true;
        }
        changed_.notify_all();
        thread_.join();
        forget_last_act(last_act_);
        remove();
    }

  private:
    bool is_ours() const {
        std::ifstream file(path_);
        std::string text;
        std::getline(file, text);
        return Holder::of(text) == self_;
    }
    void remove() const {
        if (is_ours()) ::unlink(path_.c_str());
    }
    void give_signs_of_life() {
        std::unique_lock lock(mutex_);
        while (!changed_.wait_for(lock, heartbeat, [this] { return over_; })) {
            // After a long standstill another job may have taken over: two must not write.
            if (::access(path_.c_str(), F_OK) == 0 && !is_ours()) {
                log_here(
                    fmt::format("{}: another job took this folder over while this one stood "
                                "still; leaving it to that job",
                                folder_));
                MpiSession::abort(2);
            }
            ::utimensat(AT_FDCWD, path_.c_str(), nullptr, 0);
        }
    }

    std::string folder_;
    std::string path_;
    Holder self_;
    int last_act_ = 0;
    std::mutex mutex_;
    std::condition_variable changed_;
    bool over_ = false;
    std::thread thread_;
};

FolderLock::FolderLock(const std::string& folder, const Communicator& all) {
    all.together([&] {
        if (all.rank() == 0) held_ = std::make_unique<Held>(folder);
    });
}

FolderLock::FolderLock(FolderLock&&) noexcept = default;
FolderLock::~FolderLock() = default;

}  // namespace clt
