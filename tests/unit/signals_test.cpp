// Requests to stop, and a log that cannot be written.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <thread>

#include "clt/base/log.hpp"
#include "clt/base/stop.hpp"
#include "clt/comm/communicator.hpp"
#include "support/scratch.hpp"

namespace clt {
namespace {

void wait_for_request() {
    while (!stop_requested()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

TEST(Signals, AFirstOneSetsTheFlag) {
    for (const int signal : {SIGUSR1, SIGTERM, SIGINT, SIGHUP}) {
        forget_stop_request();
        kill(getpid(), signal);  // all four within half a second: they count as one request
        wait_for_request();
    }
    forget_stop_request();
}

TEST(Signals, AClosedPipeAndAFileSizeLimitAreErrorsOfTheWrite) {
    std::array<int, 2> pipe{};
    ASSERT_EQ(::pipe(pipe.data()), 0);
    ::close(pipe[0]);
    EXPECT_EQ(::write(pipe[1], "x", 1), -1);
    ::close(pipe[1]);
    struct sigaction action {};
    sigaction(SIGXFSZ, nullptr, &action);
    EXPECT_EQ(action.sa_handler, SIG_IGN);
}

TEST(Stop, RanksLeaveAPhaseTogether) {
    const Communicator world = Communicator::world();
    EXPECT_NO_THROW(world.stop_point("nothing was asked"));
    request_stop();
    EXPECT_NE(test::message_of<Stopped>([&] {
                  world.stop_point("a file was read");
              }).find("while a file was read"),
              std::string::npos);
    EXPECT_NE(test::message_of<Stopped>([&] {
                  world.together([] { stop_point("a tensor was read"); });
              }).find("while a tensor was read"),
              std::string::npos);
    forget_stop_request();
}

TEST(Stop, LastActsHappenOnceAndCanBeForgotten) {
    int done = 0;
    add_last_act([&] { ++done; });
    const int other = add_last_act([&] { done += 10; });
    forget_last_act(other);
    do_last_acts();
    do_last_acts();
    EXPECT_EQ(done, 1);
}

// stderr as this descriptor while it lives.
class RedirectedLog {
  public:
    explicit RedirectedLog(int descriptor) : before_(::dup(STDERR_FILENO)) {
        ::dup2(descriptor, STDERR_FILENO);
    }
    RedirectedLog(const RedirectedLog&) = delete;
    RedirectedLog& operator=(const RedirectedLog&) = delete;
    ~RedirectedLog() {
        ::dup2(before_, STDERR_FILENO);
        ::close(before_);
    }

  private:
    int before_;
};

std::string read_all_there_is(int descriptor) {
    std::string text;
    std::array<char, 65536> part{};
    for (ssize_t got = 0; (got = ::read(descriptor, part.data(), part.size())) > 0;)
        text.append(part.data(), static_cast<std::size_t>(got));
    return text;
}

TEST(Log, AReaderThatStandsStillCostsLinesAndLearnsHowMany) {
    std::array<int, 2> pipe{};
    ASSERT_EQ(::pipe2(pipe.data(), O_NONBLOCK), 0);
    {
        const RedirectedLog log(pipe[1]);
        const std::string long_line(3000, 'x');
        for (int i = 0; i < 30; ++i) log_line(long_line);  // more than a pipe holds
        EXPECT_NE(read_all_there_is(pipe[0]).find(long_line), std::string::npos);
        log_line("the reader is back");
    }
    const std::string text = read_all_there_is(pipe[0]);
    EXPECT_NE(text.find(" earlier messages could not be written here)\nthe reader is back\n"),
              std::string::npos)
        << text;
    ::close(pipe[0]);
    ::close(pipe[1]);
}

TEST(Log, AFullDiskAndAClosedPipeAreNoErrors) {
    std::array<int, 2> pipe{};
    ASSERT_EQ(::pipe(pipe.data()), 0);
    ::close(pipe[0]);
    const int full = ::open("/dev/full", O_WRONLY);
    for (const int broken : {pipe[1], full}) {
        const RedirectedLog log(broken);
        log_line("lost");
        log_here("lost");
        log_live("lost");
    }
    ::close(pipe[1]);
    ::close(full);
}

}  // namespace
}  // namespace clt

int main(int argc, char** argv) {
    clt::take_stop_signals();  // before MPI makes threads, as in the program
    const clt::MpiSession session(argc, argv);
    testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
