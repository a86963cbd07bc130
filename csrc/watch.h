// A thread that starts handovers where a device asks for them by numbers in memory that both see. It takes the place of
// host functions, all of which run on one thread: there, a wait for one stream's call holds up the starts of all others.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace scout {

class Watch {
  public:
    // flags, [tickets, 2] and zero, must live until close(): a handover is started when its first number changes, and
    // its second becomes the same when it has ended.
    Watch(std::vector<uint64_t> tickets, int32_t* flags);
    ~Watch() { close(); }
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

    // Answers nothing any more when it returns; a second call does nothing.
    void close();

  private:
    struct Place {
        void* ticket;
        int32_t *asked, *ended;
        int32_t number = 0;
        bool under_way = false;
    };
    void serve();
    bool look_at(Place& place);

    std::vector<Place> places_;
    std::atomic<bool> closed_{false};
    std::thread thread_;
};

}  // namespace scout
