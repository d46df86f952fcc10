// Go's net/http on descriptor 3. SIGTERM: Shutdown. It speaks systemd's protocol: READY=1, STOPPING=1, and WATCHDOG=1 as
// long as the lock that handlers need can be had.
//
// Variables for tests: START_DELAY=SECONDS makes it slow to start; if BROKEN=FILE exists, it cannot
// start; IN_FLIGHT=FILE is written when /slow is being answered; with LINGER=SECONDS, it announces
// closes for that long before Shutdown.
package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func notify(text string) {
	if path := os.Getenv("NOTIFY_SOCKET"); path != "" {
		if line, err := net.Dial("unixgram", path); err == nil {
			line.Write([]byte(text))
			line.Close()
		}
	}
}

func main() {
	if _, err := os.Stat(os.Getenv("BROKEN")); err == nil {
		panic("broken")
	}
	var state sync.Mutex
	var draining atomic.Bool
	http.HandleFunc("/", func(answer http.ResponseWriter, request *http.Request) {
		state.Lock()
		if request.URL.Path == "/block" {
			select {}
		}
		state.Unlock()
		if request.URL.Path == "/slow" {
			os.WriteFile(os.Getenv("IN_FLIGHT"), nil, 0o600)
			time.Sleep(time.Second)
		}
		answer.Header().Set("x-prefork-generation", os.Getenv("PREFORK_GENERATION"))
		answer.Header().Set("x-prefork-pid", strconv.Itoa(os.Getpid()))
		if draining.Load() {
			answer.Header().Set("Connection", "close")
		}
		answer.Write([]byte("Hello from Go"))
	})
	delay, _ := strconv.ParseFloat(os.Getenv("START_DELAY"), 64)
	time.Sleep(time.Duration(delay * float64(time.Second)))

	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		panic(err)
	}
	server := &http.Server{}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	finished := make(chan struct{})
	go func() {
		<-stop
		notify("STOPPING=1")
		draining.Store(true)
		linger, _ := strconv.Atoi(os.Getenv("LINGER"))
		time.Sleep(time.Duration(linger) * time.Second)
		server.Shutdown(context.Background())
		close(finished)
	}()
	if period, err := strconv.Atoi(os.Getenv("WATCHDOG_USEC")); err == nil {
		go func() {
			for {
				state.Lock()
				state.Unlock()
				notify("WATCHDOG=1")
				time.Sleep(time.Duration(period) * time.Microsecond / 3)
			}
		}()
	}
	notify("READY=1")
	server.Serve(listener)
	<-finished
}
