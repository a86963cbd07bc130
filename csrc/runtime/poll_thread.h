// A thread that looks for calls while a step is under way: words that a device raises in memory that both see. Between
// steps it sleeps, and takes no time of any core.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace scout {

// Whoever a device calls.
class Callee {
  public:
    virtual ~Callee() = default;
    // A call has been made, and all that the device wrote before it is seen. On the poll thread, which ends where this
    // throws.
    virtual void called(uint32_t number) = 0;
};

class PollThread {
  public:
    PollThread() = default;
    ~PollThread() { close(); }
    PollThread(const PollThread&) = delete;
    PollThread& operator=(const PollThread&) = delete;

    // Has the callee called whenever the word changes from what it is now. The word must live until remove().
    void add(const uint32_t* word, Callee& callee);
    // Returns when no call is inside the callee, and lets none begin.
    void remove(const Callee& callee);

    // A step begins: words are looked at until end(). Starts the thread where there is none, and forgets its failure.
    void begin();
    // The device is done with the step.
    void end();
    // What ended the thread since begin(); empty where nothing did.
    std::string failure();
    // Ends the thread for good. A second call does nothing.
    void close();

  private:
    struct Place {
        const uint32_t* word;
        uint32_t seen;
        Callee* callee;
    };

    std::unique_lock<std::mutex> enter();
    void serve() noexcept;
    void poll(std::unique_lock<std::mutex>& lock);
    bool scan();

    std::mutex mutex_;  // held during every scan, and so by every call
    std::atomic<int> entering_{0};  // threads that want the mutex, and that the poll thread lets pass
    std::condition_variable wake_;
    std::vector<Place> places_;
    bool under_way_ = false, running_ = false, closed_ = false;
    std::string failure_;
    std::thread thread_;
};

}  // namespace scout
