// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// clientDevice is the one of meshd connect.
const clientDevice = "mesh0"

// connect runs meshd connect on a host with a client's configuration, and variables of the
// environment, and returns a function that stops it.
func (c *client) connect(env ...string) (end func()) {
	c.v.t.Helper()
	const path, log = "/etc/laptop.conf", "/run/connect.log"
	c.v.must(c.Host.WriteFile(path, c.config, 0o600))
	c.pid = strings.TrimSpace(c.v.run(c.Host, "sh", "-c", fmt.Sprintf("PATH=%s:$PATH %s %s connect --verbose %s >%s 2>&1 & echo $!", lab.QuickDir, strings.Join(env, " "), binary, path, log)))
	c.v.t.Cleanup(func() {
		if c.v.t.Failed() {
			out, err := c.Host.Run(context.Background(), "cat", log)
			c.v.t.Logf("meshd connect: %v\n%s", err, out)
		}
	})
	return func() {
		c.v.t.Helper()
		c.kill("-TERM")
	}
}

// kill sends a signal to meshd connect, and waits until it has ended.
func (c *client) kill(signal string) {
	c.v.t.Helper()
	c.v.run(c.Host, "kill", signal, c.pid)
	c.v.eventually(settleLimit, func() error {
		if _, err := c.Host.Run(c.v.ctx, "test", "-e", "/proc/"+c.pid); err == nil {
			return errors.New("meshd connect runs still")
		}
		return nil
	})
}

// allAnswer is what systemd is told when all nodes with tunnels to clients answer.
var allAnswer = regexp.MustCompile(`^READY=1\nSTATUS=([1-9]) of ([1-9]) nodes answer; Services through [a-z0-9-]+$`)

// TestConnect checks that meshd connect follows changes of the mesh: a gateway that also
// carries Services dies, a node joins, a node is reached through another one. When it
// ends, nothing of it is left.
func TestConnect(t *testing.T) {
	t.Parallel()
	v, host := newClientVillage(t, mesh.ModeLocation)
	late, err := v.lab.Host(v.ctx, "late", lab.NAT)
	v.must(err)
	before := v.hostState(host)

	c := v.laptop(v.nodes[0], host, "laptop", "--psk")
	v.must(c.Down(v.ctx))
	path := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	v.must(err)
	defer systemd.Close()
	end := c.connect("NOTIFY_SOCKET=" + path)
	c.reaches(v.nodes...)
	v.eventually(settleLimit, func() error { // each message is newer
		message := make([]byte, 1024)
		v.must(systemd.SetReadDeadline(time.Now().Add(time.Second)))
		n, err := systemd.Read(message)
		if m := allAnswer.FindSubmatch(message[:n]); err == nil && (m == nil || !bytes.Equal(m[1], m[2])) {
			err = fmt.Errorf("systemd was told %q", message[:n])
		}
		return err
	})

	v.eventually(settleLimit, func() error { // only set when a node has answered
		if resolver, err := c.Resolver(); err != nil || !strings.Contains(resolver, "nameserver 10.43.0.10") {
			return fmt.Errorf("resolver: got %q, %w", resolver, err)
		}
		return nil
	})

	first := v.gateway(v.node("attic-1"), "aws")
	n := lab.NewNode(late, binary)
	v.nodes = append(v.nodes, n)
	v.configure(n, cluster(1, mesh.ModeLocation)...)
	v.start(n)
	v.overlay[n] = v.settle(settleLimit, v.nodes...)[len(v.nodes)-1].Node.Overlay
	v.pods[n] = v.pod(n, "pod-late")
	c.reaches(v.nodes...) // the new one has come by itself

	// Stop the node that carries Services now.
	serving := v.node(services(c.shown(first)))
	v.must(serving.Kill())
	v.must(serving.Cut(v.ctx))
	rest := v.without(serving)
	for _, r := range rest {
		v.must(nft(v.ctx, r, fmt.Sprintf(service, netip.AddrPortFrom(v.pods[r].Addresses[0], port))))
		echo, err := lab.ListenEcho(v.pods[r].Do, port)
		v.must(err)
		defer echo.Close()
	}
	v.eventually(settleLimit, func() error {
		ctx, cancel := context.WithTimeout(v.ctx, time.Second)
		defer cancel()
		_, err := lab.SourceSeen(ctx, c.Host.Do, netip.AddrPortFrom(serviceAddr, 80))
		return err
	})
	c.reaches(rest...)
	end()
	if resolver, err := c.Resolver(); err != nil || strings.Contains(resolver, "nameserver") {
		t.Errorf("resolver afterwards: got %q, %v, want none", resolver, err)
	}
	if after := v.hostState(host); after["ip -br link"] != before["ip -br link"] || after["ip -4 route show table all"] != before["ip -4 route show table all"] {
		t.Errorf("the host afterwards: got %v, want %v", after, before)
	}
}

// TestConnectFailover kills the gateway that carries all of a client's tunnels, with open
// connections to and from a pod behind it. The client changes to the next one by itself.
func TestConnectFailover(t *testing.T) {
	t.Parallel()
	v, host := newClientVillage(t, mesh.ModeLocation)
	c := v.laptop(v.nodes[0], host, "laptop")
	v.must(c.Down(v.ctx))
	defer c.connect()()
	c.reaches(v.nodes...)
	gateway := v.gateway(v.node("attic-1"), "aws")
	rest := v.without(gateway)
	pod := v.pods[rest[0]]
	var streams []*lab.Stream
	for _, ends := range []struct {
		from lab.Place
		to   lab.Party
	}{{c.Host.Do, party(pod)}, {pod.Do, lab.Party{At: c.Host.Do, Addr: c.overlay[0]}}} {
		s, err := lab.StartStream(v.ctx, ends.from, ends.to)
		v.must(err)
		streams = append(streams, s)
	}
	v.flow(streams)
	v.must(gateway.Cut(v.ctx))
	v.moves(v.node("attic-1"), "aws", func(n *lab.Node) bool { return n != gateway })
	v.flow(streams)
	c.reaches(rest...)
	for _, s := range streams {
		v.must(s.Stop())
	}
}

// TestHostileConnect answers a client in place of the first node that it asks, as a pod
// could that has taken the node's port. The client keeps its configuration, and reaches
// Services through a node that answers properly.
func TestHostileConnect(t *testing.T) {
	t.Parallel()
	v, host := newClientVillage(t, mesh.ModeLocation, "lone-1")
	victim := v.gateway(v.node("attic-1"), "aws")
	var forged atomic.Pointer[control.ClientConfig]
	var asked atomic.Int64
	impostor := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_ = json.NewEncoder(w).Encode(forged.Load())
	})}
	var l net.Listener
	v.must(victim.Do(func() (err error) { // before meshd does, which begins with the first client
		l, err = net.Listen("tcp", netip.AddrPortFrom(v.overlay[victim][0], mesh.ClientPort).String())
		return err
	}))
	done := make(chan struct{})
	go func() { defer close(done); _ = impostor.Serve(l) }()
	defer func() { _ = impostor.Close(); <-done }()

	c := v.laptop(v.nodes[0], host, "laptop", "--service-gateway", victim.Name)
	v.must(c.Down(v.ctx))
	lie := c.shown(v.nodes[0])
	lie.Resolver, lie.Search = "192.0.2.53", []string{"example.com"}
	for i, p := range lie.Peers {
		if p.Name == victim.Name {
			lie.Peers[i].AllowedIPs = append(p.AllowedIPs, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("203.0.113.0/24"))
		}
	}
	forged.Store(&lie)
	defer c.connect()()
	c.reaches(v.nodes...)
	v.eventually(settleLimit, func() error {
		if n := asked.Load(); n < 5 {
			return fmt.Errorf("the impostor was asked %d times", n)
		}
		return nil
	})
	other := v.overlay[v.node("lone-1")][0].String() // strangers reach it, too
	v.eventually(settleLimit, func() error {
		for line := range strings.Lines(v.run(c.Host, "wg", "show", clientDevice, "allowed-ips")) {
			if strings.Contains(line, "10.43.0.0/16") && strings.Contains(line, other) {
				return nil
			}
		}
		return errors.New("Services go through the silent node still")
	})
	for _, family := range []string{"-4", "-6"} {
		routes := v.run(c.Host, "ip", family, "route", "show", "table", "all")
		for line := range strings.Lines(routes) {
			if strings.Contains(line, "dev "+clientDevice) && (strings.HasPrefix(line, "default") || strings.HasPrefix(line, "203.0.113.0")) {
				t.Errorf("a route that was not granted: %s", line)
			}
		}
	}
	if resolver, err := c.Resolver(); err != nil || !strings.Contains(resolver, "nameserver 10.43.0.10") || strings.Contains(resolver, "192.0.2.53") {
		t.Errorf("resolver: got %q, %v, want the cluster's", resolver, err)
	}
	c.reaches(v.nodes...)
}
