// A Proxy-Wasm filter in C without any SDK: what tests/languages.rs asks of a guest in every language.
// It answers 403 on /closed, logs every path (through stdio, so through WASI), and says on each answer who it is and over
// which protocol.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IMPORT(name) __attribute__((import_module("env"), import_name(#name))) uint32_t name
#define EXPORT(name) __attribute__((export_name(#name))) name

IMPORT(proxy_get_property)(const char *path, size_t path_len, char **value, size_t *len);
IMPORT(proxy_replace_header_map_value)(uint32_t map, const char *key, size_t key_len, const char *value, size_t len);
IMPORT(proxy_send_local_response)(uint32_t status, const char *details, size_t details_len, const char *body, size_t len,
                                  const char *headers, size_t headers_len, int32_t grpc_status);

enum { RESPONSE_HEADERS = 2, CONTINUE = 0, PAUSE = 1 };

void EXPORT(proxy_abi_version_0_2_0)(void) {}

void *EXPORT(proxy_on_memory_allocate)(size_t len) { return malloc(len); }

// A property as a string, to be freed.
static char *property(const char *path, size_t path_len) {
  char *value = NULL;
  size_t len = 0;
  if (proxy_get_property(path, path_len, &value, &len) != 0) {
    len = 0;
  }
  char *text = malloc(len + 1);
  if (len > 0) {
    memcpy(text, value, len);
  }
  text[len] = '\0';
  free(value);
  return text;
}

#define PROPERTY(path) property(path, sizeof path - 1)

uint32_t EXPORT(proxy_on_request_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
  static const char body[] = "closed by c";
  char *path = PROPERTY("request\0path");
  printf("c sees %s\n", path);
  fflush(stdout);
  uint32_t action = CONTINUE;
  if (strcmp(path, "/closed") == 0) {
    proxy_send_local_response(403, NULL, 0, body, sizeof body - 1, NULL, 0, -1);
    action = PAUSE;
  }
  free(path);
  return action;
}

uint32_t EXPORT(proxy_on_response_headers)(uint32_t context, uint32_t count, uint32_t end_of_stream) {
  char value[64];
  char *protocol = PROPERTY("request\0protocol");
  int len = snprintf(value, sizeof value, "c over %s", protocol);
  free(protocol);
  proxy_replace_header_map_value(RESPONSE_HEADERS, "x-guest", 7, value, (size_t)len);
  return CONTINUE;
}
