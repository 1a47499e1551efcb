// A Proxy-Wasm filter in C++ without any SDK: what tests/languages.rs asks of a guest in every language.
// It answers 403 on /closed, logs every path, and says on each answer who it is and over which protocol. What it says of itself is put
// together by a global constructor: whoever does not run `_initialize` gets an empty name.
//
// The language without its standard library, which `zig c++` would first compile from source for a minute.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

void *operator new(size_t len) { return malloc(len); }
void operator delete(void *bytes) noexcept { free(bytes); }
void operator delete(void *bytes, size_t) noexcept { free(bytes); }

#define IMPORT(name) __attribute__((import_module("env"), import_name(#name))) uint32_t name
#define EXPORT(name) __attribute__((export_name(#name))) name

extern "C" {
IMPORT(proxy_log)(uint32_t level, const char *message, size_t len);
IMPORT(proxy_get_property)(const char *path, size_t path_len, char **value, size_t *len);
IMPORT(proxy_replace_header_map_value)(uint32_t map, const char *key, size_t key_len, const char *value, size_t len);
IMPORT(proxy_send_local_response)(uint32_t status, const char *details, size_t details_len, const char *body, size_t len,
                                  const char *headers, size_t headers_len, int32_t grpc_status);
}

namespace {

constexpr uint32_t info = 2;
constexpr uint32_t response_headers = 2;

struct View {
  const char *bytes;
  size_t len;

  template <size_t N> constexpr View(const char (&text)[N]) : bytes(text), len(N - 1) {}
  constexpr View(const char *bytes, size_t len) : bytes(bytes), len(len) {}
  bool operator==(View other) const { return len == other.len && memcmp(bytes, other.bytes, len) == 0; }
};

class Text {
public:
  Text &operator<<(View part) {
    const size_t room = sizeof bytes_ - len_;
    const size_t taken = part.len < room ? part.len : room;
    memcpy(bytes_ + len_, part.bytes, taken);
    len_ += taken;
    return *this;
  }
  operator View() const { return {bytes_, len_}; }

private:
  char bytes_[256];
  size_t len_ = 0;
};

class Property {
public:
  explicit Property(View path) {
    if (proxy_get_property(path.bytes, path.len, &value_, &len_) != 0) {
      len_ = 0;
    }
  }
  Property(const Property &) = delete;
  ~Property() { free(value_); }
  View view() const { return {value_, len_}; }

private:
  char *value_ = nullptr;
  size_t len_ = 0;
};

struct Name {
  Name() { text << "c++"; }
  Text text;
};

const Name name;

class Context {
public:
  virtual ~Context() = default;
  virtual uint32_t request_headers() = 0;
  virtual uint32_t response_headers() = 0;
};

class Stream final : public Context {
public:
  uint32_t request_headers() override {
    const Property path("request\0path");
    Text line;
    const View said = line << name.text << " sees " << path.view();
    proxy_log(info, said.bytes, said.len);
    if (!(path.view() == "/closed")) {
      return 0;
    }
    Text text;
    const View body = text << "closed by " << name.text;
    proxy_send_local_response(403, nullptr, 0, body.bytes, body.len, nullptr, 0, -1);
    return 1;
  }

  uint32_t response_headers() override {
    const Property protocol("request\0protocol");
    Text text;
    const View key = "x-guest";
    const View value = text << name.text << " over " << protocol.view();
    proxy_replace_header_map_value(::response_headers, key.bytes, key.len, value.bytes, value.len);
    return 0;
  }
};

} // namespace

extern "C" {
void EXPORT(proxy_abi_version_0_2_1)() {}

void *EXPORT(proxy_on_memory_allocate)(size_t len) { return malloc(len); }

uint32_t EXPORT(proxy_on_request_headers)(uint32_t, uint32_t, uint32_t) {
  Context *context = new Stream;
  const uint32_t action = context->request_headers();
  delete context;
  return action;
}

uint32_t EXPORT(proxy_on_response_headers)(uint32_t, uint32_t, uint32_t) {
  Context *context = new Stream;
  const uint32_t action = context->response_headers();
  delete context;
  return action;
}
}
