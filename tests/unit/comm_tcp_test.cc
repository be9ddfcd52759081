// The communicator without MPI: ranks are forked processes that meet on 127.0.0.1.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "comm/bootstrap.h"
#include "comm/tcp_communicator.h"
#include "comm/tcp_socket.h"
#include "comm/watchdog.h"
#include "kernels/base/progress.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/unit/comm_testing.h"

namespace filigree {
namespace {

int FreePort() {
  auto listener = ListenTcp(0);
  CHECK(listener.ok());
  return listener->port();
}

// What a process of its own ended with, and what it wrote to stderr.
struct Ended {
  int code = -1;   // exit code
  int signal = 0;  // that killed it
  std::string errors;
};

// Runs `body(rank)` in `ranks` processes; a rank's exit code is 0 where it returns true.
std::vector<Ended> InProcesses(int ranks, const std::function<bool(int)>& body) {
  std::vector<pid_t> pids(ranks);
  std::vector<int> pipes(ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    pids[rank] = fork();
    if (pids[rank] == 0) {
      dup2(ends[1], STDERR_FILENO);
      close(ends[0]);
      close(ends[1]);
      alarm(60);
      std::_Exit(body(rank) && !testing::Test::HasFailure() ? 0 : 3);
    }
    close(ends[1]);
    pipes[rank] = ends[0];
  }
  std::vector<Ended> ended(ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    char text[4096];
    while (true) {
      const ssize_t size = read(pipes[rank], text, sizeof(text));
      if (size <= 0) break;
      ended[rank].errors.append(text, size);
    }
    close(pipes[rank]);
    int status = 0;
    waitpid(pids[rank], &status, 0);
    if (WIFEXITED(status)) ended[rank].code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) ended[rank].signal = WTERMSIG(status);
  }
  return ended;
}

TcpRendezvous At(int port, int rank, int ranks, double deadline_seconds = 30) {
  TcpRendezvous rendezvous;
  rendezvous.rank = rank;
  rendezvous.size = ranks;
  rendezvous.address = "127.0.0.1";
  rendezvous.port = port;
  rendezvous.deadline_seconds = deadline_seconds;
  return rendezvous;
}

std::unique_ptr<Communicator> Meet(const TcpRendezvous& rendezvous) {
  auto communicator = MakeTcpCommunicator(rendezvous);
  CHECK(communicator.ok()) << communicator.status().message();
  return std::move(communicator).value();
}

TEST(TcpCommunicator, CollectivesAreExact) {
  for (const int ranks : {2, 3, 4}) {
    const int port = FreePort();
    const auto ended = InProcesses(ranks, [&](int rank) {
      const auto communicator = Meet(At(port, rank, ranks));
      CpuDevice device;
      CollectiveCheck check(*communicator, device);
      for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16, DType::kI64}) {
        check.Run(dtype);
      }
      check.RunLarge(DType::kF32);
      check.RunLarge(DType::kBF16);
      check.HostCollectives();
      return communicator->local_rank() == rank && communicator->local_size() == ranks &&
             communicator->host() == HostName();
    });
    for (const Ended& rank : ended) EXPECT_EQ(rank.code, 0) << rank.errors;
  }
}

TEST(TcpCommunicator, RoundsBFloat16SumsOnce) {
  const int port = FreePort();
  const auto ended = InProcesses(3, [&](int rank) {
    const auto communicator = Meet(At(port, rank, 3));
    CpuDevice device;
    const auto stream = device.NewStream();
    const auto ready = device.NewEvent();
    TestVector data(device, DType::kBF16, 1, *stream);
    // 256 + 1 + 1: rounded after each addition it would stay 256.
    data.Set([&](int64_t) { return rank == 0 ? 256 : 1; });
    communicator->AllReduce(data.view(), ReduceOp::kSum, *ready)->Wait(*stream);
    return data.Get()[0] == 258;
  });
  for (const Ended& rank : ended) EXPECT_EQ(rank.code, 0) << rank.errors;
}

TEST(TcpCommunicator, DifferentCollectivesAreFatal) {
  const int port = FreePort();
  const auto ended = InProcesses(2, [&](int rank) {
    const auto communicator = Meet(At(port, rank, 2));
    std::vector<double> values(rank == 0 ? 3 : 4);
    communicator->AllReduceHost(std::span<double>(values), ReduceOp::kSum);
    return true;
  });
  EXPECT_EQ(ended[0].code, 1);
  EXPECT_EQ(ended[1].code, 1);
  EXPECT_NE(ended[0].errors.find("rank 1"), std::string::npos) << ended[0].errors;
  EXPECT_NE(ended[0].errors.find("of 4 elements"), std::string::npos) << ended[0].errors;
}

TEST(TcpCommunicator, NamesTheRanksThatNeverCame) {
  const int port = FreePort();
  const auto ended = InProcesses(2, [&](int rank) {
    const auto found = MakeTcpCommunicator(At(port, rank, 4, /*deadline_seconds=*/1));
    return !found.ok() && found.status().message().find("rank 2, 3 of 4") != std::string::npos;
  });
  for (const Ended& rank : ended) EXPECT_EQ(rank.code, 0) << rank.errors;
}

TEST(TcpCommunicator, NamesTheAddressWhereNobodyListens) {
  const auto found = MakeTcpCommunicator(At(FreePort(), 1, 2, /*deadline_seconds=*/0.3));
  ASSERT_FALSE(found.ok());
  EXPECT_NE(found.status().message().find("127.0.0.1:"), std::string::npos);
  EXPECT_EQ(found.status().exit_code(), 1);
}

TEST(TcpCommunicator, RefusesOneRankTwiceAndAnotherWorldSize) {
  struct Case {
    std::function<TcpRendezvous(int port, int process)> of;
    const char* expected;
  };
  const Case cases[] = {
      {[](int port, int process) { return At(port, process == 0 ? 0 : 1, 3); },
       "rank 1 was started twice"},
      {[](int port, int process) { return At(port, process, process == 0 ? 3 : 4); },
       "was started with WORLD_SIZE=4"}};
  for (const Case& c : cases) {
    const int port = FreePort();
    const auto ended = InProcesses(3, [&](int process) {
      const auto found = MakeTcpCommunicator(c.of(port, process));
      return !found.ok() &&
             (process > 0 || found.status().message().find(c.expected) != std::string::npos);
    });
    for (const Ended& rank : ended) EXPECT_EQ(rank.code, 0) << rank.errors;
  }
}

// Clears what a launcher of this test may have set, and sets `variables`.
void SetEnvironment(const std::map<std::string, std::string>& variables) {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_STEP_NUM_TASKS",
                           "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR",
                           "MASTER_PORT", "TORCHELASTIC_RUN_ID"}) {
    unsetenv(name);
  }
  for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
}

TEST(Bootstrap, MeetsAsTorchrunSaysIt) {
  const int port = FreePort();
  const auto ended = InProcesses(2, [&](int rank) {
    SetEnvironment({{"RANK", std::to_string(rank)},
                    {"WORLD_SIZE", "2"},
                    {"LOCAL_RANK", "0"},
                    {"LOCAL_WORLD_SIZE", "1"},
                    {"MASTER_ADDR", "127.0.0.1"},
                    // torchrun's agent holds MASTER_PORT; ours is the next.
                    {"MASTER_PORT", std::to_string(port - 1)},
                    {"TORCHELASTIC_RUN_ID", "none"}});
    auto communicator = Bootstrap();
    CHECK(communicator.ok()) << communicator.status().message();
    Communicator& comm = **communicator;
    int64_t sum = comm.rank() + 1;
    comm.AllReduceHost(std::span<int64_t>(&sum, 1), ReduceOp::kSum);
    return sum == 3 && comm.size() == 2 && comm.local_rank() == 0 && comm.local_size() == 1;
  });
  for (const Ended& rank : ended) EXPECT_EQ(rank.code, 0) << rank.errors;
}

TEST(Bootstrap, NamesTheVariableThatIsWrong) {
  const std::map<std::string, std::string> good = {
      {"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "127.0.0.1"}, {"MASTER_PORT", "29500"}};
  for (const auto& [name, value] : std::map<std::string, std::string>{
           {"RANK", "2"}, {"WORLD_SIZE", "many"}, {"MASTER_PORT", "0"}, {"LOCAL_RANK", "-1"}}) {
    auto variables = good;
    variables[name] = value;
    SetEnvironment(variables);
    const auto found = Bootstrap();
    ASSERT_FALSE(found.ok());
    EXPECT_EQ(found.status().exit_code(), 2);
    EXPECT_EQ(found.status().message().rfind(name + "=" + value, 0), 0u)
        << found.status().message();
  }
  for (const char* name : {"MASTER_ADDR", "MASTER_PORT"}) {
    auto variables = good;
    variables.erase(name);
    SetEnvironment(variables);
    const auto found = Bootstrap();
    ASSERT_FALSE(found.ok());
    EXPECT_EQ(found.status().message().rfind(std::string(name) + " is not set", 0), 0u)
        << found.status().message();
  }
  SetEnvironment({{"RANK", "0"}, {"WORLD_SIZE", "1"}});
  EXPECT_TRUE(Bootstrap().ok());
}

std::unique_ptr<Communicator> MeetWatched(int port, int rank, int ranks, double timeout) {
  std::unique_ptr<Communicator> communicator = Meet(At(port, rank, ranks));
  const Status watched = Watch(&communicator, timeout);
  CHECK(watched.ok()) << watched.message();
  return communicator;
}

TEST(Watchdog, LeavesAWorkingRunAlone) {
  const int port = FreePort();
  const auto ended = InProcesses(3, [&](int rank) {
    const auto communicator = MeetWatched(port, rank, 3, 1);
    for (int i = 0; i < 15; ++i) {
      communicator->Barrier();
      usleep(100000);
    }
    return true;
  });
  for (const Ended& rank : ended) {
    EXPECT_EQ(rank.code, 0);
    EXPECT_EQ(rank.errors, "");
  }
}

TEST(Watchdog, NamesTheRankThatIsBehind) {
  const int port = FreePort();
  const auto ended = InProcesses(3, [&](int rank) {
    const auto communicator = MeetWatched(port, rank, 3, 1);
    communicator->Barrier();
    ReportStep(7);
    ReportActivity("training");
    if (rank == 1) sleep(50);
    communicator->Barrier();
    return true;
  });
  for (const Ended& rank : ended) EXPECT_EQ(rank.code, 1) << rank.errors;
  const std::string& message = ended[0].errors;
  EXPECT_NE(message.find("no progress for 1 s"), std::string::npos) << message;
  const size_t behind = message.find("\n  rank 1 on " + HostName() + ": step 7, training, ");
  const size_t waiting =
      message.find("\n  rank 2 on " + HostName() + ": step 7, training, in barrier");
  EXPECT_LT(behind, waiting) << message;
  EXPECT_NE(waiting, std::string::npos) << message;
}

TEST(Watchdog, NamesTheRankThatWasKilled) {
  const int port = FreePort();
  const auto ended = InProcesses(3, [&](int rank) {
    const auto communicator = MeetWatched(port, rank, 3, 30);
    communicator->Barrier();
    if (rank == 2) raise(SIGKILL);
    // Nobody waits for rank 2: only the watchdog can tell.
    sleep(50);
    return true;
  });
  EXPECT_EQ(ended[2].signal, SIGKILL);
  EXPECT_EQ(ended[1].code, 1);
  EXPECT_EQ(ended[0].code, 1);
  EXPECT_NE(ended[0].errors.find("rank 2 on " + HostName() + " ended without a word"),
            std::string::npos)
      << ended[0].errors;
}

TEST(Watchdog, NamesTheRankThatIsSilent) {
  const int port = FreePort();
  // A stopped process keeps its connections and says nothing, as behind a link that is down.
  const auto ended = InProcesses(3, [&](int rank) {
    const auto communicator = MeetWatched(port, rank, 3, 1);
    communicator->Barrier();
    if (rank == 2) {
      const pid_t self = getpid();
      if (fork() == 0) {  // somebody must end the stopped process
        sleep(8);
        kill(self, SIGKILL);
        std::_Exit(0);
      }
      raise(SIGSTOP);
    }
    communicator->Barrier();
    return true;
  });
  EXPECT_EQ(ended[0].code, 1);
  EXPECT_EQ(ended[1].code, 1);
  EXPECT_NE(ended[0].errors.find("no word from rank 2 on " + HostName()), std::string::npos)
      << ended[0].errors;
}

}  // namespace
}  // namespace filigree
