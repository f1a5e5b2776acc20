// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package lab

import (
	"context"
	"net"
	"testing"
	"time"
)

// A child process has all descriptors of this process until it executes its program. A
// listener that is closed meanwhile must free its port nevertheless.
func TestClosedEchoLeavesItsPort(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l, err := New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h, err := l.Host(ctx, "a", Routed)
	if err != nil {
		t.Fatal(err)
	}
	const port = 7000
	first, err := ListenEcho(h.Do, port)
	if err != nil {
		t.Fatal(err)
	}
	copied, err := first.(*echo).listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := ListenEcho(h.Do, port)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}
