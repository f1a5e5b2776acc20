// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestUsers: links on the bridge and other programs' sockets at the overlay addresses use
// these; our own sockets, and sockets at other addresses, do not.
func TestUsers(t *testing.T) {
	if !namespaced(t) {
		return
	}
	h := newKernel(t)
	overlay := []netip.Addr{netip.MustParseAddr("10.4.0.1"), netip.MustParseAddr("fd04::1")}
	users := func() string {
		t.Helper()
		got, err := h.Users(t.Context(), overlay)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(got, ", ")
	}
	if got := users(); got != "" {
		t.Errorf("an empty host: got %q", got)
	}
	for _, line := range []string{
		"ip addr add 10.4.0.1/32 dev lo", "ip addr add fd04::1/128 dev lo nodad", "ip addr add 10.4.0.9/32 dev lo",
		"ip link add kube-bridge type bridge", "ip link set kube-bridge up", "ip link add other type bridge",
		"ip link add v2 type veth peer v3", "ip link set v2 master other",
	} {
		run(t, line)
	}
	for _, at := range []string{"10.4.0.1:9587", "[fd04::1]:9587"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	if got := users(); got != "" {
		t.Errorf("only our own sockets, and a bridge without ports: got %q", got)
	}
	if err := h.RemoveBridge(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, "ip link add kube-bridge type bridge")
	run(t, "ip link add v0 type veth peer v1")
	run(t, "ip link set v0 master kube-bridge")
	if err := h.RemoveBridge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if links, err := h.PodLinks(); err != nil || !slices.Equal(links, []string{"v0"}) {
		t.Errorf("links of pods: got %q, %v, want v0", links, err)
	}
	program := exec.CommandContext(t.Context(), "/proc/self/exe")
	program.Env = append(os.Environ(), socketsVar+"=udp/10.4.0.1:123 udp/[fd04::1]:123 udp/10.4.0.9:123 tcp/10.4.0.1:6443 tcp/[fd04::1]:6443 udp/10.4.0.1:53 tcp/10.4.0.9:80 tcp/:81")
	in, err := program.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	want := "link v0 on kube-bridge, tcp socket at 10.4.0.1:6443, tcp socket at [fd04::1]:6443, udp socket at 10.4.0.1:53"
	if got := users(); got != want {
		t.Errorf("with others' sockets:\ngot  %s\nwant %s", got, want)
	}
	in.Close()
	if err := program.Wait(); err != nil {
		t.Error(err)
	}
}

// openSockets opens sockets, each named by its protocol and address, says so, and keeps
// them until its input ends.
func openSockets(sockets []string) int {
	for _, s := range sockets {
		protocol, at, _ := strings.Cut(s, "/")
		var err error
		if protocol == "udp" {
			_, err = net.ListenPacket(protocol, at)
		} else {
			_, err = net.Listen(protocol, at)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	fmt.Print("!")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// TestUsersOf: a program that binds every address of the host does not use the overlay
// address; one that has chosen it does.
func TestUsersOf(t *testing.T) {
	at := func(protocol, local string, waits bool) socket {
		return socket{protocol: protocol, local: netip.MustParseAddrPort(local), waits: waits, inode: 1}
	}
	for _, tt := range []struct {
		name    string
		sockets []socket
		want    string
	}{
		{"an NTP server", []socket{at("udp", "10.4.0.1:123", true), at("udp", "192.168.1.5:123", true), at("udp", "0.0.0.0:123", true)}, ""},
		{"an NTP server on a host with addresses of one family elsewhere", []socket{at("udp", "[fd04::1]:123", true), at("udp", "192.168.1.5:123", true)}, ""},
		{"a name server", []socket{at("tcp", "10.4.0.1:53", true), at("tcp", "[fe80::1]:53", true)}, ""},
		{"a connection to it", []socket{at("tcp", "10.4.0.1:53", false), at("tcp", "10.4.0.1:53", true), at("tcp", "192.168.1.5:53", true)}, "tcp socket at 10.4.0.1:53"},
		{"etcd", []socket{at("tcp", "10.4.0.1:2379", true), at("tcp", "127.0.0.1:2379", true)}, "tcp socket at 10.4.0.1:2379"},
		{"another program everywhere", []socket{at("udp", "10.4.0.1:53", true), at("udp", "0.0.0.0:53", true), at("udp", "[fd04::1]:53", true)}, "udp socket at 10.4.0.1:53, udp socket at [fd04::1]:53"},
		{"another port, another protocol", []socket{at("udp", "10.4.0.1:53", true), at("udp", "192.168.1.5:54", true), at("tcp", "192.168.1.5:53", true)}, "udp socket at 10.4.0.1:53"},
		{"a connection under the same port elsewhere", []socket{at("tcp", "10.4.0.1:6443", true), at("tcp", "192.168.1.5:6443", false)}, "tcp socket at 10.4.0.1:6443"},
	} {
		if got := strings.Join(usersOf(tt.sockets, []netip.Addr{netip.MustParseAddr("10.4.0.1"), netip.MustParseAddr("fd04::1")}), ", "); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestParseSockets(t *testing.T) {
	for _, text := range []string{
		"header\n  0: 0100007F:0016\n",
		"header\n  0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 many 1\n",
		"header\n  0: 0100007F 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 17 1\n",
		"header\n  0: 01007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 17 1\n",
	} {
		if got, err := parseSockets(strings.NewReader(text), "tcp"); err == nil {
			t.Errorf("%q: got %v, want an error", text, got)
		}
	}
}
