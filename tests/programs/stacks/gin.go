// Gin on descriptor 3. SIGTERM: Shutdown.
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
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gin-gonic/gin"
)

func main() {
	if _, err := os.Stat(os.Getenv("BROKEN")); err == nil {
		panic("broken")
	}
	delay, _ := strconv.ParseFloat(os.Getenv("START_DELAY"), 64)
	time.Sleep(time.Duration(delay * float64(time.Second)))

	var draining atomic.Bool
	gin.SetMode(gin.ReleaseMode)
	router := gin.New()
	router.Use(func(c *gin.Context) {
		if draining.Load() {
			c.Header("Connection", "close")
		}
		c.Header("x-prefork-generation", os.Getenv("PREFORK_GENERATION"))
		c.Header("x-prefork-pid", strconv.Itoa(os.Getpid()))
	})
	router.NoRoute(func(c *gin.Context) {
		if c.Request.URL.Path == "/slow" {
			os.WriteFile(os.Getenv("IN_FLIGHT"), nil, 0o600)
			time.Sleep(time.Second)
		}
		c.String(http.StatusOK, "Hello from Gin")
	})

	// `router.RunFd(3)` has no graceful stop.
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		panic(err)
	}
	server := &http.Server{Handler: router}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	finished := make(chan struct{})
	go func() {
		<-stop
		linger, _ := strconv.Atoi(os.Getenv("LINGER"))
		draining.Store(linger > 0)
		time.Sleep(time.Duration(linger) * time.Second)
		server.Shutdown(context.Background())
		close(finished)
	}()
	server.Serve(listener)
	<-finished
}
