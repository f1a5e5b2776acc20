// SPDX-License-Identifier: Apache-2.0

package httplimit_test

import (
	"bufio"
	"errors"
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

// serve serves "ok" with limits on loopback until the test ends.
func serve(t *testing.T, o httplimit.Options) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := httplimit.NewHTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		_, _ = io.WriteString(w, "ok")
	}), 10*time.Second, slog.New(slog.DiscardHandler))
	done := make(chan error)
	go func() { done <- s.Serve(httplimit.New(o).Listener(l)) }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return netip.MustParseAddrPort(l.Addr().String())
}

// asker asks over connections from one address of loopback, which it keeps.
type asker struct {
	t      *testing.T
	source string
	to     netip.AddrPort
	conns  []net.Conn
}

// ask opens so many more connections, and returns on how many there was an answer.
func (a *asker) ask(n int) (answered int) {
	a.t.Helper()
	for range n {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(a.source)}, Timeout: 30 * time.Second}
		c, err := d.Dial("tcp4", a.to.String())
		if err != nil {
			continue
		}
		if !answers(c) {
			_ = c.Close()
			continue
		}
		a.t.Cleanup(func() { _ = c.Close() })
		a.conns = append(a.conns, c)
		answered++
	}
	return answered
}

// kept returns on how many of the connections there is an answer still.
func (a *asker) kept() (n int) {
	for _, c := range a.conns {
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

// One source opens thousands of connections; it keeps no more than its share, of which
// the oldest gives way to the newest, and others get in.
func TestHostileConnectionsOfOneSource(t *testing.T) {
	at := serve(t, httplimit.Options{PerSource: 8, Total: 64})
	greedy, other := asker{t: t, source: "127.0.0.66", to: at}, asker{t: t, source: "127.0.0.2", to: at}
	greedy.ask(3000)
	if n := other.ask(1); n != 1 {
		t.Error("another source gets no answer")
	}
	if n := greedy.kept(); n != 8 {
		t.Errorf("of the first source's connections %d are left, want 8", n)
	}
	if n := greedy.ask(1); n != 1 {
		t.Error("the first source's own newest connection gets no answer")
	}
}

// All places are taken; a newcomer gets that of the oldest connection of the source
// that has the most. Who has as many as everybody gets no more.
func TestHostileConnectionsOfManySources(t *testing.T) {
	at := serve(t, httplimit.Options{PerSource: 4, Total: 7})
	sources := make([]asker, 5)
	for i := range sources {
		sources[i] = asker{t: t, source: fmt.Sprintf("127.0.0.%d", i+2), to: at}
	}
	greedy, modest, newcomer := &sources[0], sources[1:4], &sources[4]
	if n := greedy.ask(4); n != 4 {
		t.Fatalf("got %d answers, want 4", n)
	}
	for i := range modest {
		modest[i].ask(1)
	}
	if newcomer.ask(2) != 2 || greedy.kept() != 2 || answers(greedy.conns[0]) {
		t.Error("a newcomer got no place of the oldest connections of the greedy one")
	}
	if newcomer.ask(1) != 0 {
		t.Error("a source has taken a place from one that has as many")
	}
	for i := range modest {
		if modest[i].kept() != 1 {
			t.Errorf("%s has lost its only connection", modest[i].source)
		}
	}
}

// A request that is too large, or never ends, is none.
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
	s := httplimit.NewHTTP(http.NotFoundHandler(), time.Second, slog.New(slog.DiscardHandler))
	if s.ReadHeaderTimeout == 0 || s.ReadTimeout == 0 || s.WriteTimeout == 0 || s.IdleTimeout == 0 {
		t.Errorf("a timeout is missing: %+v", s)
	}
}
