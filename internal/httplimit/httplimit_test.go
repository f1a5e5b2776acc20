// SPDX-License-Identifier: Apache-2.0

package httplimit_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/meshd/meshd/internal/httplimit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers "ok" on a loopback address, with limits, until the test ends.
func serve(t *testing.T, o httplimit.Options) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := httplimit.NewHTTP("test", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		_, _ = io.WriteString(w, "ok")
	}), 10*time.Second, slog.New(slog.DiscardHandler))
	s.Serve(httplimit.New(o).Listener(l))
	t.Cleanup(func() {
		now, cancel := context.WithCancel(context.Background())
		cancel() // slow requests are not waited for
		_ = s.Close(now)
	})
	return netip.MustParseAddrPort(l.Addr().String())
}

// source opens connections from one loopback address and keeps them open.
type source struct {
	t     *testing.T
	addr  string
	to    netip.AddrPort
	conns []net.Conn
}

// open opens n more connections, sends a request over each, and returns how many were
// answered.
func (s *source) open(n int) (answered int) {
	s.t.Helper()
	for range n {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(s.addr)}, Timeout: 30 * time.Second}
		c, err := d.Dial("tcp4", s.to.String())
		if err != nil {
			continue
		}
		if !answers(c) {
			_ = c.Close()
			continue
		}
		s.t.Cleanup(func() { _ = c.Close() })
		s.conns = append(s.conns, c)
		answered++
	}
	return answered
}

// stillOpen sends a request over each connection and returns how many are answered.
func (s *source) stillOpen() (n int) {
	for _, c := range s.conns {
		if answers(c) {
			n++
		}
	}
	return n
}

// answers reports whether a request over a connection is answered.
func answers(c net.Conn) bool {
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return false
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return err == nil && string(body) == "ok"
}

// A source that opens thousands of connections keeps only the newest ones, up to its
// limit, and other sources get answers.
func TestHostileConnectionsOfOneSource(t *testing.T) {
	at := serve(t, httplimit.Options{PerSource: 8, Total: 64})
	greedy, other := source{t: t, addr: "127.0.0.66", to: at}, source{t: t, addr: "127.0.0.2", to: at}
	greedy.open(3000)
	if n := other.open(1); n != 1 {
		t.Error("another source gets no answer")
	}
	if n := greedy.stillOpen(); n != 8 {
		t.Errorf("the first source has %d open connections, want 8", n)
	}
	if n := greedy.open(1); n != 1 {
		t.Error("the first source's newest connection gets no answer")
	}
}

// When the total is reached, a new connection replaces the oldest one of the source that
// has the most. A source that has as many as that one gets no more.
func TestHostileConnectionsOfManySources(t *testing.T) {
	at := serve(t, httplimit.Options{PerSource: 4, Total: 7})
	sources := make([]source, 5)
	for i := range sources {
		sources[i] = source{t: t, addr: fmt.Sprintf("127.0.0.%d", i+2), to: at}
	}
	greedy, modest, newcomer := &sources[0], sources[1:4], &sources[4]
	if n := greedy.open(4); n != 4 {
		t.Fatalf("got %d answers, want 4", n)
	}
	for i := range modest {
		modest[i].open(1)
	}
	if newcomer.open(2) != 2 || greedy.stillOpen() != 2 || answers(greedy.conns[0]) {
		t.Error("a new source did not replace the oldest connections of the one that has the most")
	}
	if newcomer.open(1) != 0 {
		t.Error("a source has replaced a connection of one that has no more than itself")
	}
	for i := range modest {
		if modest[i].stillOpen() != 1 {
			t.Errorf("%s has lost its only connection", modest[i].addr)
		}
	}
}

// A request that is too large, or that never ends, is refused.
func TestHostileRequest(t *testing.T) {
	at := serve(t, httplimit.Options{PerSource: 4, Total: 8})
	resp, err := http.Post("http://"+at.String(), "text/plain", strings.NewReader(strings.Repeat("x", 1<<20)))
	if err == nil {
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("a body of 1 MiB: got %s", resp.Status)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	slow, err := net.Dial("tcp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := io.WriteString(slow, "GET / HTTP/1.1\r\nX: "+strings.Repeat("x", 64<<10)); err == nil {
		_ = slow.SetReadDeadline(time.Now().Add(30 * time.Second))
		if answer, _ := io.ReadAll(slow); strings.Contains(string(answer), "200 OK") {
			t.Errorf("an endless header: got %q", answer)
		}
	}
}
