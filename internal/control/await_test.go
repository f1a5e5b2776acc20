// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshd/meshd/internal/control"
)

// starting is a daemon on whose host pods may start when it has been asked for the third
// time.
type starting struct {
	daemon
	asked atomic.Int32
}

func (d *starting) Status() control.Status {
	return control.Status{Node: control.Node{Name: "a", Ready: d.asked.Add(1) >= 3}}
}

func TestAwaitReady(t *testing.T) {
	d := &starting{}
	c, _ := serve(t, d)
	if s, err := c.AwaitReady(t.Context()); err != nil || !s.Node.Ready || d.asked.Load() != 3 {
		t.Errorf("got ready %t, %v, after %d questions, want it after 3", s.Node.Ready, err, d.asked.Load())
	}
	never := &daemon{status: control.Status{Node: control.Node{Name: "a"}}}
	c, _ = serve(t, never)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if s, err := c.AwaitReady(ctx); !errors.Is(err, context.DeadlineExceeded) || s.Node.Name != "a" {
		t.Errorf("got status of %q, %v, want the last one and %v", s.Node.Name, err, context.DeadlineExceeded)
	}
}

// A daemon that is away for as long as a restart takes is waited for, one that stays away
// is not.
func TestAwaitReadyWithoutDaemon(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		_, err := control.NewClient(dir).AwaitReady(t.Context())
		if !errors.Is(err, control.ErrNotRunning) || time.Since(began) < 10*time.Second {
			t.Errorf("got %v after %v, want %v, and not before a restart is over", err, time.Since(began), control.ErrNotRunning)
		}
	})
}

// A daemon that is killed in the middle of a request is waited for, too.
func TestAwaitReadyWhenDaemonIsKilled(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", control.SocketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		ready bool
		err   error
	}
	got := make(chan result, 1)
	go func() {
		s, err := control.NewClient(dir).AwaitReady(t.Context())
		got <- result{s.Node.Ready, err}
	}()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Read(make([]byte, 1)) // the rest is unread, so that the client gets a reset
	if err := errors.Join(conn.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	s, err := control.Listen(dir, &daemon{status: control.Status{Node: control.Node{Ready: true}}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if r := <-got; r.err != nil || !r.ready {
		t.Errorf("got ready %t, %v, want the answer of the next daemon", r.ready, r.err)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Error(err)
	}
}
