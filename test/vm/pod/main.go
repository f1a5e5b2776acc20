// SPDX-License-Identifier: Apache-2.0

// Command pod makes pods with containerd as a kubelet does, as far as the network is
// concerned, and is also the program in the pod:
//
//	pod image FILE         write an image for ctr images import, with this program in it
//	pod run NAME [PORT]    make a pod, reached at that port of its host too, and print
//	                       its address and network namespace
//	pod remove NAME        remove it
//	pod serve              answer each TCP connection with the host name
//
// A sandbox is enough for a pod: the program replaces the pause image.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

// timeout is for busy emulated machines.
const timeout = 5 * time.Minute

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pod:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: pod image FILE | run NAME [PORT] | remove NAME | serve")

func run(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve()
	case len(args) == 2 && args[0] == "image":
		return writeImage(args[1])
	case len(args) == 2 && args[0] == "run":
		return runPod(ctx, args[1], 0)
	case len(args) == 3 && args[0] == "run":
		port, err := strconv.ParseUint(args[2], 10, 16)
		if err != nil {
			return fmt.Errorf("read port: %w", err)
		}
		return runPod(ctx, args[1], int32(port))
	case len(args) == 2 && args[0] == "remove":
		return removePod(ctx, args[1])
	}
	return errUsage
}

// servePort is the pod's own.
const servePort = 8080

func serve() error {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", servePort))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	name, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("find own name: %w", err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		fmt.Fprintln(c, name)
		c.Close()
	}
}
