// A Proxy-Wasm filter in Go without any SDK: a wasip1 reactor as `go build -buildmode=c-shared` makes it.
// It echoes the request header `x-name` in the response header `x-greeting`, counts requests in the heap (so
// that the runtime collects garbage now and then), and refuses what carries `x-refuse`. And it does what tests/languages.rs asks
// of a guest in every language.
package main

import (
	"sort"
	"strings"
	"unsafe"
)

func main() {}

const (
	ok              = 0
	requestHeaders  = 0
	responseHeaders = 2
	configuration   = 7
	actionContinue  = 0
	actionPause     = 1
	noGrpcStatus    = -1
)

//go:wasmimport env proxy_log
func proxyLog(level uint32, message unsafe.Pointer, size uint32) uint32

//go:wasmimport env proxy_get_buffer_bytes
func proxyGetBufferBytes(kind, start, max uint32, data, size unsafe.Pointer) uint32

//go:wasmimport env proxy_get_header_map_value
func proxyGetHeaderMapValue(kind uint32, key unsafe.Pointer, keySize uint32, value, valueSize unsafe.Pointer) uint32

//go:wasmimport env proxy_get_property
func proxyGetProperty(path unsafe.Pointer, pathSize uint32, value, valueSize unsafe.Pointer) uint32

//go:wasmimport env proxy_replace_header_map_value
func proxyReplaceHeaderMapValue(kind uint32, key unsafe.Pointer, keySize uint32, value unsafe.Pointer, valueSize uint32) uint32

//go:wasmimport env proxy_send_local_response
func proxySendLocalResponse(status uint32, details unsafe.Pointer, detailsSize uint32, body unsafe.Pointer, bodySize uint32, headers unsafe.Pointer, headersSize uint32, grpcStatus int32) uint32

// What the host has asked for and not yet been given back; it keeps the collector away.
var lent = map[uint32][]byte{}

// What a stream remembers between its phases.
type stream struct {
	name string
	seen []string
}

var (
	greeting = "hello"
	streams  = map[uint32]*stream{}
)

//go:wasmexport proxy_abi_version_0_2_0
func abiVersion() {}

//go:wasmexport proxy_on_memory_allocate
func allocate(size uint32) uint32 {
	if size == 0 {
		size = 1
	}
	bytes := make([]byte, size)
	at := uint32(uintptr(unsafe.Pointer(unsafe.SliceData(bytes))))
	lent[at] = bytes
	return at
}

// take copies what the host wrote at `at` and lets it go.
func take(at, size uint32) string {
	bytes := lent[at]
	delete(lent, at)
	if uint32(len(bytes)) < size {
		return ""
	}
	return string(bytes[:size])
}

func log(message string) {
	proxyLog(2, unsafe.Pointer(unsafe.StringData(message)), uint32(len(message)))
}

func header(kind uint32, key string) (string, bool) {
	var at, size uint32
	status := proxyGetHeaderMapValue(kind, unsafe.Pointer(unsafe.StringData(key)), uint32(len(key)), unsafe.Pointer(&at), unsafe.Pointer(&size))
	if status != ok {
		return "", false
	}
	return take(at, size), true
}

func setHeader(kind uint32, key, value string) {
	proxyReplaceHeaderMapValue(kind, unsafe.Pointer(unsafe.StringData(key)), uint32(len(key)), unsafe.Pointer(unsafe.StringData(value)), uint32(len(value)))
}

func property(path string) string {
	var at, size uint32
	if proxyGetProperty(unsafe.Pointer(unsafe.StringData(path)), uint32(len(path)), unsafe.Pointer(&at), unsafe.Pointer(&size)) != ok {
		return ""
	}
	return take(at, size)
}

func refuse(body string) uint32 {
	proxySendLocalResponse(403, nil, 0, unsafe.Pointer(unsafe.StringData(body)), uint32(len(body)), nil, 0, noGrpcStatus)
	return actionPause
}

//go:wasmexport proxy_on_context_create
func onContextCreate(context, parent uint32) {
	if parent != 0 {
		streams[context] = &stream{}
	}
}

//go:wasmexport proxy_on_vm_start
func onVMStart(context, size uint32) int32 { return 1 }

//go:wasmexport proxy_on_configure
func onConfigure(context, size uint32) int32 {
	if size > 0 {
		var at, got uint32
		if proxyGetBufferBytes(configuration, 0, size, unsafe.Pointer(&at), unsafe.Pointer(&got)) != ok {
			return 0
		}
		// The configuration is JSON with one member; a parser would only make the module bigger.
		if _, after, found := strings.Cut(take(at, got), `"greeting"`); found {
			_, after, _ = strings.Cut(after, `"`)
			greeting, _, _ = strings.Cut(after, `"`)
		}
	}
	log("a Go guest greets with " + greeting)
	return 1
}

//go:wasmexport proxy_on_request_headers
func onRequestHeaders(context, count, endOfStream uint32) uint32 {
	if _, found := header(requestHeaders, "x-refuse"); found {
		return refuse("refused by Go")
	}
	path := property("request\x00path")
	log("go sees " + path)
	if path == "/closed" {
		return refuse("closed by go")
	}
	if name, found := header(requestHeaders, "x-name"); found {
		streams[context].name = name
	}
	return actionContinue
}

//go:wasmexport proxy_on_response_headers
func onResponseHeaders(context, count, endOfStream uint32) uint32 {
	stream := streams[context]
	for i := range 64 {
		stream.seen = append(stream.seen, strings.Repeat(stream.name, i))
	}
	sort.Strings(stream.seen)
	setHeader(responseHeaders, "x-greeting", greeting+" "+stream.name)
	setHeader(responseHeaders, "x-guest", "go over "+property("request\x00protocol"))
	return actionContinue
}

//go:wasmexport proxy_on_done
func onDone(context uint32) int32 { return 1 }

//go:wasmexport proxy_on_log
func onLog(context uint32) {}

//go:wasmexport proxy_on_delete
func onDelete(context uint32) { delete(streams, context) }
