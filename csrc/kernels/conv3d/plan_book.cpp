#include "kernels/conv3d/plan_book.h"

#include <pthread.h>

#include <atomic>
#include <mutex>
#include <sstream>

#include "isa/isa.h"

namespace volnet::conv3d {
namespace {

struct Book {
  std::mutex mutex;
  std::map<std::string, std::string> choices;
  std::vector<std::string> trace;
  std::atomic<int64_t> edition{0};
  std::atomic<bool> measuring{false}, tracing{false};
};

// Never destroyed, and safe to fork, as the pool.
Book& book() {
  static Book* instance = [] {
    auto* made = new Book;
    pthread_atfork([] { book().mutex.lock(); }, [] { book().mutex.unlock(); }, [] { book().mutex.unlock(); });
    return made;
  }();
  return *instance;
}

}  // namespace

std::string plan_key(const Convolution& call, const Conditions& conditions) {
  constexpr std::array<const char*, 3> elements = {"f32", "bf16", "f64"},
                                       precisions = {"highest", "high", "medium"};
  std::ostringstream text;
  text << "conv3d " << elements[static_cast<size_t>(conditions.element)] << ' '
       << precisions[static_cast<size_t>(conditions.precision)] << ' ' << isa::name(isa::active()) << " n"
       << call.batch << " g" << call.groups << " c" << call.channels << " k" << call.filters;
  for (const Axis& axis : call.axes) {
    text << ' ' << axis.input << '>' << axis.count << '/' << axis.stride << '@' << axis.write_first << '+'
         << axis.write_step << ':' << axis.output << '[';
    for (size_t t = 0; t < axis.taps.size(); ++t) text << (t ? "," : "") << axis.taps[t].offset;
    text << ']';
  }
  return text.str();
}

bool measuring() { return book().measuring.load(std::memory_order_relaxed); }
void set_measuring(bool on) { book().measuring.store(on); }

std::string measured_choice(const std::string& key) {
  const std::lock_guard lock(book().mutex);
  const auto it = book().choices.find(key);
  return it == book().choices.end() ? std::string() : it->second;
}

void remember_choices(const std::map<std::string, std::string>& choices) {
  const std::lock_guard lock(book().mutex);
  for (const auto& [key, name] : choices) book().choices[key] = name;
  ++book().edition;
}

std::map<std::string, std::string> measured_choices() {
  const std::lock_guard lock(book().mutex);
  return book().choices;
}

void forget_choices() {
  const std::lock_guard lock(book().mutex);
  book().choices.clear();
  ++book().edition;
}

int64_t plan_book_edition() { return book().edition.load(); }

bool tracing() { return book().tracing.load(std::memory_order_relaxed); }

void set_tracing(bool on) {
  const std::lock_guard lock(book().mutex);
  book().trace.clear();
  book().tracing.store(on);
}

void trace(const std::string& kernel) {
  const std::lock_guard lock(book().mutex);
  book().trace.push_back(kernel);
}

std::vector<std::string> take_trace() {
  const std::lock_guard lock(book().mutex);
  std::vector<std::string> taken;
  taken.swap(book().trace);
  return taken;
}

}  // namespace volnet::conv3d
