// SPDX-License-Identifier: Apache-2.0

package check

import (
	"bufio"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/https"
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
		if p := processOn(network, uint16(port)); p.Name == "" || p.PID != os.Getpid() {
			t.Errorf("process on %s port %d: got %v, want this one, pid %d", network, port, p, os.Getpid())
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if p := processOn("tcp", uint16(tcp)); p.PID != 0 {
		t.Errorf("process on a closed port: got %v, want none", p)
	}
}

// TestLookVXLAN checks who uses the VXLAN port and the VXLAN device's name: another program,
// a foreign device, or meshd.
func TestLookVXLAN(t *testing.T) {
	cfg := parse(t, "cluster: {mode: location}", "node:", "  location: aws", "  internal-ip: 192.168.1.1/24")
	tests := []struct {
		name          string
		links         []string
		listens       bool // another program uses the port
		foreign, ours bool
		state         PortState
	}{
		{name: "free", state: PortFree},
		{name: "another program", listens: true, state: PortTaken},
		{name: "a foreign VXLAN device", links: []string{"link add theirs type vxlan id 5 dstport 7947", "link set theirs up"}, state: PortTaken},
		{name: "a bridge of that name", links: []string{"link add meshd0-vx type bridge"}, foreign: true, state: PortFree},
		{name: "a foreign VXLAN device of that name", links: []string{"link add meshd0-vx type vxlan id 5 dstport 7947", "link set meshd0-vx up"}, foreign: true, state: PortTaken},
		{name: "ours", links: []string{"link add meshd0-vx type vxlan id 77 dstport 7947", "link set meshd0-vx alias meshd up"}, ours: true, state: PortTaken},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := Facts{Capable: true}
			err := inNamespace(func() error {
				for _, args := range tt.links {
					if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
						return fmt.Errorf("ip %s: %w: %s", args, err, out)
					}
				}
				if tt.listens {
					c, err := net.ListenPacket("udp", ":7947")
					if err != nil {
						return err
					}
					defer c.Close()
				}
				return errors.Join(f.lookLinks(), f.lookPorts(cfg, f.lookDevices(t.Context(), cfg)))
			})
			if err != nil || f.Unread != nil {
				t.Fatal(err, f.Unread)
			}
			last := f.Ports[len(f.Ports)-1]
			if f.ForeignVXLAN != tt.foreign || last.Port != 7947 || last.State != tt.state || last.Ours != tt.ours {
				t.Errorf("got a foreign device %t, port %+v; want %t, %s, ours %t", f.ForeignVXLAN, last, tt.foreign, tt.state, tt.ours)
			}
		})
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

// A host of the join list at a port of TLS is asked for its certificate, through a proxy if there
// is one.
func TestReachOverTLS(t *testing.T) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	server, err := https.Server(key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var proxies sync.WaitGroup
	proxies.Go(func() { // a proxy that is the host itself
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			proxies.Go(func() {
				defer conn.Close()
				r, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				answer := "HTTP/1.1 200 OK\r\n\r\n"
				if strings.HasPrefix(r.Host, "closed") {
					answer = "HTTP/1.1 403 No\r\n\r\n"
				}
				if _, err := io.WriteString(conn, answer); err == nil {
					_ = tls.Server(conn, server).Handshake()
				}
			})
		}
	})
	defer proxies.Wait()
	defer l.Close()
	t.Setenv("HTTPS_PROXY", "http://user:password@"+l.Addr().String())
	t.Setenv("NO_PROXY", "")
	t.Setenv("no_proxy", "")
	cfg := config.Config{Join: []config.HostPort{{Host: "aws.example.com", Port: 443}, {Host: "closed.example.com", Port: 443}}}
	got := reach(t.Context(), cfg, nil)
	if r := got[0]; r.DialErr != nil || r.ResolveErr != nil || r.Foreign || r.Proxy != l.Addr().String() {
		t.Errorf("a node: got %+v", r)
	}
	if r := got[1]; r.DialErr == nil || !strings.Contains(r.DialErr.Error(), "403") || strings.Contains(r.DialErr.Error(), "password") {
		t.Errorf("a host to which the proxy allows no connections: got %+v", r)
	}
	// Without a proxy, and with another server than a node.
	certificate, err := x509.CreateCertificate(nil, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		defer far.Close()
		_ = tls.Server(far, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: key}}}).Handshake()
	}()
	r := Reach{Host: "aws.example.com", Port: 443}
	if r.connect(t.Context(), config.Config{}, func() (net.Conn, error) { return near, nil }); !r.Foreign || r.DialErr != nil {
		t.Errorf("another server: got %+v", r)
	}
}
