// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package lab_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshd/meshd/test/lab"
)

// answering has a host send back what comes over TCP to a port.
func answering(t *testing.T, h *lab.Host, port uint16) {
	t.Helper()
	var l net.Listener
	if err := h.Do(func() (err error) {
		l, err = net.Listen("tcp", at(h, port).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(ctx, func() { conn.Close() })
			work.Go(func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		work.Wait()
	})
}

// says sends something from a host over TCP, and returns an error unless it comes back within
// the time.
func says(h *lab.Host, to netip.AddrPort, text string, within time.Duration) error {
	return h.Do(func() error {
		conn, err := net.DialTimeout("tcp", to.String(), within)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, text); err != nil {
			return err
		}
		_, err = io.ReadFull(conn, make([]byte, len(text)))
		return err
	})
}

// TestRouterWithNothingButHTTPS: only what begins as TLS does leaves the site, and only to port 443.
func TestRouterWithNothingButHTTPS(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	far, hears := server(ctx, t, l, "far")
	h, asks := home(ctx, t, l, "library", lab.Router{OnlyHTTPS: true})
	answering(t, far, 443)
	answering(t, far, 7946)
	long := strings.Repeat("x", 200)
	if err := says(h, at(far, 443), "\x16\x03\x01"+long, limit); err != nil {
		t.Errorf("TLS: %v", err)
	}
	if err := says(h, at(far, 443), "\x02"+long, limit); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("not TLS: got %v, want a reset", err)
	}
	if err := says(h, at(far, 7946), "\x16\x03\x01"+long, 200*time.Millisecond); err == nil {
		t.Error("another port is reached")
	}
	hears.hears(t, false, "UDP", func() { asks.send(t, at(far, 7000)) })
}

// TestProxy: behind a router that lets out nothing else, those who have the password reach port 443
// of the hosts that the proxy knows.
func TestProxy(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t)
	gateway, far := newHost(ctx, t, l, "proxy", lab.Routed), newHost(ctx, t, l, "far", lab.Routed)
	h, _ := home(ctx, t, l, "office", lab.Router{OnlyTo: gateway.Public()})
	answering(t, far, 443)
	p, err := lab.StartProxy(gateway.Do, at(gateway, 3128), map[string]netip.Addr{"far.example.com": far.Public()}, "word")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := says(h, at(far, 443), "hello", 200*time.Millisecond); err == nil {
		t.Error("the host is reached without the proxy")
	}
	if want := "http://user:word@" + at(gateway, 3128).String(); p.URL() != want {
		t.Errorf("URL: got %s, want %s", p.URL(), want)
	}
	for _, tt := range []struct {
		to, password string
		want         int
	}{
		{"far.example.com:443", "word", http.StatusOK},
		{"far.example.com:443", "another", http.StatusProxyAuthRequired},
		{"far.example.com:7946", "word", http.StatusForbidden},
		{far.Public().String() + ":443", "word", http.StatusForbidden},
	} {
		err := h.Do(func() error {
			conn, err := net.DialTimeout("tcp", at(gateway, 3128).String(), limit)
			if err != nil {
				return err
			}
			defer conn.Close()
			basic := http.Request{Header: http.Header{}}
			basic.SetBasicAuth("user", tt.password)
			if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\nProxy-Authorization: %s\r\n\r\n", tt.to, basic.Header.Get("Authorization")); err != nil {
				return err
			}
			from := bufio.NewReader(conn)
			answer, err := http.ReadResponse(from, &http.Request{Method: http.MethodConnect})
			if err != nil {
				return err
			}
			if answer.StatusCode != tt.want {
				t.Errorf("%s with password %q: got %s, want %d", tt.to, tt.password, answer.Status, tt.want)
			}
			if tt.want != http.StatusOK {
				return nil
			}
			if _, err := io.WriteString(conn, "hello"); err != nil {
				return err
			}
			_, err = io.ReadFull(from, make([]byte, 5))
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", tt.to, err)
		}
	}
	if n := p.Opened("far.example.com"); n != 1 {
		t.Errorf("%d connections were opened, want 1", n)
	}
}
