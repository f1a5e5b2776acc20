// SPDX-License-Identifier: Apache-2.0

package check

import (
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/meshd/meshd/internal/config"
)

func TestHolder(t *testing.T) {
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, tcp := c.LocalAddr().(*net.UDPAddr).Port, l.Addr().(*net.TCPAddr).Port
	for network, port := range map[string]int{"udp": udp, "tcp": tcp} {
		if name, pid := holder(network, uint16(port)); name == "" || pid != os.Getpid() {
			t.Errorf("holder of %s port %d: got %q, pid %d, want this process, pid %d", network, port, name, pid, os.Getpid())
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if name, pid := holder("tcp", uint16(tcp)); pid != 0 {
		t.Errorf("holder of a closed port: got %q, pid %d, want none", name, pid)
	}
}

func TestReach(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := func(l net.Listener) uint16 { return uint16(l.Addr().(*net.TCPAddr).Port) }
	gone := port(closed)
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := config.Config{Join: []config.HostPort{
		{Host: "127.0.0.1", Port: port(l)},
		{Host: "127.0.0.1", Port: gone},
		{Host: "127.0.0.2", Port: gone}, // one's own
		{Host: "no..name", Port: 1},
	}}
	cfg.Node.Endpoint = config.HostPort{Host: "127.0.0.1"}
	cfg.Gossip.Advertise = config.HostPort{Host: "no..name"}
	want := []struct {
		key               string
		resolved, dialled bool
	}{
		{"join[0]", true, true},
		{"join[1]", true, false},
		{"join[2]", true, true},
		{"join[3]", false, true},
		{"node.endpoint", true, true},
		{"gossip.advertise", false, true},
	}
	got := reach(t.Context(), cfg, []netip.Addr{netip.MustParseAddr("127.0.0.2")})
	if len(got) != len(want) {
		t.Fatalf("got %+v, want %d", got, len(want))
	}
	for i, w := range want {
		if g := got[i]; g.Key != w.key || (g.ResolveErr == nil) != w.resolved || (g.DialErr == nil) != w.dialled {
			t.Errorf("got %+v, want %+v", g, w)
		}
	}
}
