#include "clt/comm/heartbeat.hpp"

#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

#include "clt/base/log.hpp"
#include "clt/base/progress.hpp"
#include "clt/base/stop.hpp"

namespace clt {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr double longest_interval_s = 1;
// When the job is to end anyway, a rank that does not answer for so long is taken for dead: nobody
// would come to save anything.
constexpr double patience_when_stopping_s = 15;
// Lower ranks speak first; this many tell of a silent rank 0 one after the other.
constexpr int speakers = 8;

std::atomic<double> g_timeout_s = 0;

// What a rank says of itself.
struct Message {
    Index progress = 0;
    Index step = 0;
    std::array<char, 32> stage{};
    std::array<char, 32> call{};
    std::int32_t bye = 0;

    static Message of(const Place& place, bool bye) {
        Message message;
        message.progress = place.progress;
        message.step = place.step;
        const auto copy = [](const char* from, std::array<char, 32>& to) {
            if (from != nullptr) std::strncpy(to.data(), from, to.size() - 1);
        };
        copy(place.stage, message.stage);
        copy(place.call, message.call);
        message.bye = bye ? 1 : 0;
        return message;
    }

    std::string text() const {
        std::string words = fmt::format("step {}", step);
        if (stage[0] != 0) words += fmt::format(", behind {}", stage.data());
        if (call[0] != 0) words += fmt::format(", waiting in {}", call.data());
        return words;
    }
};

// What is known of another rank.
struct Peer {
    Message last;
    Clock::time_point heard = Clock::now();
    Clock::time_point advanced = Clock::now();
    bool said_bye = false;
    MPI_Request sending = MPI_REQUEST_NULL;
    Message sent;
};

}  // namespace

class Heartbeat::Watch {
  public:
    explicit Watch(const Communicator& world)
        : communicator_(world.duplicate()), peers_(static_cast<std::size_t>(world.size())) {
        std::array<char, 64> host{};
        ::gethostname(host.data(), host.size() - 1);
        hosts_ = communicator_.all_gather(host);
        thread_ = std::thread([this] { run(); });
    }
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;
    ~Watch() {
        {
            const std::lock_guard lock(mutex_);
            over_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }

  private:
    bool leads() const { return communicator_.rank() == 0; }
    Peer& peer(int rank) { return peers_[static_cast<std::size_t>(rank)]; }

    // Calls see(rank) for the ranks this one talks to: rank 0 to all others, they to rank 0.
    template <class See>
    void each_partner(See&& see) {
        if (!leads()) return see(0);
        for (int rank = 1; rank < communicator_.size(); ++rank) see(rank);
    }

    void run() {
        try {
            std::unique_lock lock(mutex_);
            auto before = Clock::now();
            for (bool bye = false; !(bye && all_said_bye());) {
                bye = over_;
                lock.unlock();
                const double limit = limit_s();
                // Who was stopped itself has heard nobody for that time.
                if (Seconds(Clock::now() - before).count() > limit / 2) forgive();
                receive(bye);
                send(bye);
                if (limit > 0) judge(limit);
                before = Clock::now();
                lock.lock();
                // Short while others may be waiting for our end.
                const double interval = bye         ? 0.002
                                        : limit > 0 ? std::min(longest_interval_s, limit / 10)
                                                    : longest_interval_s;
                changed_.wait_for(lock, Seconds(interval), [&] { return over_ && !bye; });
            }
            lock.unlock();
            each_partner([&](int rank) {
                check_mpi(MPI_Wait(&peer(rank).sending, MPI_STATUS_IGNORE), "MPI_Wait");
            });
        } catch (const std::exception& e) {
            log_here(fmt::format("the watch over other ranks ended: {}", e.what()));
        }
    }

    static double limit_s() {
        const double timeout = g_timeout_s;
        return stop_requested() ? std::min(timeout, patience_when_stopping_s) : timeout;
    }

    bool all_said_bye() {
        bool all = true;
        each_partner([&](int rank) {
            Peer& p = peer(rank);
            int sent = 1;
            if (p.sending != MPI_REQUEST_NULL)
                check_mpi(MPI_Test(&p.sending, &sent, MPI_STATUS_IGNORE), "MPI_Test");
            all = all && p.said_bye && sent != 0 && p.sent.bye != 0;
        });
        return all;
    }

    void forgive() {
        for (Peer& p : peers_) p.heard = p.advanced = Clock::now();
    }

    void receive(bool bye) {
        for (;;) {
            int there = 0;
            MPI_Status status;
            check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, 0, communicator_.handle(), &there, &status),
                      "MPI_Iprobe");
            if (there == 0) break;
            Message message;
            check_mpi(MPI_Recv(&message, sizeof(message), MPI_BYTE, status.MPI_SOURCE, 0,
                               communicator_.handle(), MPI_STATUS_IGNORE),
                      "MPI_Recv");
            hear(status.MPI_SOURCE, message);
        }
        hear(communicator_.rank(), Message::of(current_place(), bye));
    }

    void hear(int rank, const Message& message) {
        Peer& p = peer(rank);
        p.heard = Clock::now();
        if (message.progress != p.last.progress) p.advanced = p.heard;
        p.last = message;
        p.said_bye = p.said_bye || message.bye != 0;
    }

    void send(bool bye) {
        each_partner([&](int rank) {
            Peer& p = peer(rank);
            if (p.sent.bye != 0) return;
            int sent = 1;  // one message a partner is under way: a stopped one takes none
            if (p.sending != MPI_REQUEST_NULL)
                check_mpi(MPI_Test(&p.sending, &sent, MPI_STATUS_IGNORE), "MPI_Test");
            if (sent == 0) return;
            p.sent = Message::of(current_place(), bye);
            check_mpi(MPI_Isend(&p.sent, sizeof(p.sent), MPI_BYTE, rank, 0, communicator_.handle(),
                                &p.sending),
                      "MPI_Isend");
        });
    }

    void judge(double limit) {
        const auto now = Clock::now();
        std::vector<std::string> silent;
        // A rank that speaks later than others gives them the time to.
        const double turn = longest_interval_s * std::min(communicator_.rank(), speakers);
        each_partner([&](int rank) {
            const Peer& p = peer(rank);
            const double s = Seconds(now - p.heard).count();
            if (!p.said_bye && s > limit + turn)
                silent.push_back(
                    fmt::format("rank {} on host {} has not answered for {:.0f} s, "
                                "its last place was {}",
                                rank, host(rank), s, p.last.text()));
        });
        if (!silent.empty()) give_up(silent);
        if (leads() && g_timeout_s > 0) judge_progress(now, g_timeout_s);
    }

    void judge_progress(Clock::time_point now, double timeout) {
        std::vector<std::string> busy;
        std::vector<std::string> waiting;
        for (int rank = 0; rank < communicator_.size(); ++rank) {
            const Peer& p = peer(rank);
            const double s = Seconds(now - p.advanced).count();
            if (p.said_bye) continue;
            if (s <= timeout) return;  // some rank comes further
            (p.last.call[0] == 0 ? busy : waiting)
                .push_back(fmt::format("rank {} on host {} has come no further for {:.0f} s: {}",
                                       rank, host(rank), s, p.last.text()));
        }
        // Those that wait for others are not what is stuck, unless all do.
        if (!busy.empty() || !waiting.empty()) give_up(busy.empty() ? waiting : busy);
    }

    std::string host(int rank) const { return hosts_[static_cast<std::size_t>(rank)].data(); }

    [[noreturn]] void give_up(std::vector<std::string> words) {
        const std::size_t all = words.size();
        if (all > 4) {
            words.resize(4);
            words.push_back(fmt::format("{} more", all - 4));
        }
        log_text(
            fmt::format("clt: {}; the other ranks wait for it and end the job (exit code {}, "
                        "[run] timeout_s = {:g}): start it again\n",
                        fmt::join(words, "; "), exit_interrupted, g_timeout_s.load()));
        MpiSession::abort(exit_interrupted);
    }

    Communicator communicator_;
    std::vector<std::array<char, 64>> hosts_;
    std::vector<Peer> peers_;
    std::mutex mutex_;
    std::condition_variable changed_;
    bool over_ = false;
    std::thread thread_;
};

Heartbeat::Heartbeat(const Communicator& world) {
    if (world.size() > 1) watch_ = std::make_unique<Watch>(world);
}

Heartbeat::~Heartbeat() = default;

void Heartbeat::set_timeout(double seconds) {
    g_timeout_s = seconds;
}

}  // namespace clt
