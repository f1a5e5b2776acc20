// SPDX-License-Identifier: Apache-2.0

package relaynft

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/path"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// insideVar is the name of the test that the child runs in its own namespaces. They go away
// with it.
const insideVar = "RELAYNFT_TEST_INSIDE"

// patience is how long a test waits for something.
const patience = 3 * time.Minute

func namespaced(t *testing.T) bool {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("namespaces need root")
	}
	if os.Getenv(insideVar) == t.Name() {
		for _, err := range []error{
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("tmpfs", "/run", "tmpfs", 0, ""),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return true
	}
	t.Parallel()
	runtime.LockOSThread() // Pdeathsig is sent when the thread that started the child ends
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.v", "-test.run=^"+regexp.QuoteMeta(t.Name())+"$")
	cmd.Env = append(os.Environ(), insideVar+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in namespaces: %v\n%s", err, out)
	}
	return false
}

func run(t *testing.T, script string, args ...any) string {
	t.Helper()
	out, err := exec.Command("bash", "-ec", fmt.Sprintf(script, args...)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// within calls f on a thread that is in a namespace.
func within(t *testing.T, name string, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromName(name)
		if err == nil {
			err = netns.Set(ns)
			ns.Close()
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("enter namespace %s: %v", name, err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for began := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("not within %v: %s\n%s", patience, what, run(t, "nft list ruleset; ip address; ip route"))
		}
	}
}

const (
	relayPort = 7946
	nodePort  = 51820
)

// host is a node that is bound to the relay, at its address of either family.
type host struct {
	number byte
	netns  string
	conns  map[bool]*net.UDPConn // WireGuard's port, by whether it is of IPv4
	// local is where it reaches the relay.
	addr, local map[bool]netip.Addr
}

func (h *host) at(is4 bool) netip.AddrPort { return netip.AddrPortFrom(h.addr[is4], nodePort) }

// relay stands for the one in user space.
type relay struct {
	mu      sync.Mutex
	bound   []path.Kept
	rate    uint64
	offered uint64
	changed chan struct{}
}

func (r *relay) Kept() []path.Kept {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.bound)
}

func (r *relay) Changed() <-chan struct{} { return r.changed }

func (r *relay) Offered() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.offered
}

func (r *relay) SetRate(rate uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rate = rate
}

func (r *relay) Rate() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rate
}

// set has other nodes be bound.
func (r *relay) set(bound ...path.Kept) {
	r.mu.Lock()
	r.bound = bound
	r.mu.Unlock()
	signal(r.changed)
}

// bed is a relay, in the namespace of the test's process, and two hosts:
//
//	host1 ── up1, relay, up2 ── router ── host2
type bed struct {
	hosts     [2]*host
	user      map[bool]*net.UDPConn // the relay's port, by whether it is of IPv4
	relay     *relay
	forwarder *Forwarder
	stop      func() // ends the forwarder
}

// uplink makes a link of the relay, up1 or up2, to eth0 in a namespace. The argument of the
// script is its number.
type uplink string

const (
	plain uplink = `
		ip link add up%[1]d type veth peer name eth0 netns next%[1]d`
	bridge uplink = `
		ip link add port%[1]d type veth peer name eth0 netns next%[1]d
		ip link add up%[1]d type bridge
		ip link set port%[1]d master up%[1]d up`
)

// index returns the receiver's index in packets that a host sends to the other one.
func index(from *host, is4 bool) uint32 {
	if is4 {
		return 0x01020304 * uint32(from.number)
	}
	return 0x0a0b0c0d + uint32(from.number)
}

// newBed makes a bed with two such uplinks.
func newBed(t *testing.T, first, second uplink) *bed {
	t.Helper()
	run(t, `
		ip link set lo up
		for n in next1 next2 host2; do
			ip netns add $n
			ip -n $n link set lo up
		done
	`)
	run(t, string(first), 1)
	run(t, string(second), 2)
	run(t, `
		sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
		for n in 1 2; do
			ip address add 10.0.$n.1/24 dev up$n
			ip address add fd00:$n::1/64 dev up$n nodad
			ip link set up$n up
			ip -n next$n address add 10.0.$n.2/24 dev eth0
			ip -n next$n address add fd00:$n::2/64 dev eth0 nodad
			ip -n next$n link set eth0 up
			ip -n next$n route add default via 10.0.$n.1
			ip -n next$n route add default via fd00:$n::1
		done
		ip -n next2 link add lan type veth peer name eth0 netns host2
		ip -n next2 address add 10.0.3.1/24 dev lan
		ip -n next2 address add fd00:3::1/64 dev lan nodad
		ip -n next2 link set lan up
		ip -n host2 address add 10.0.3.2/24 dev eth0
		ip -n host2 address add fd00:3::2/64 dev eth0 nodad
		ip -n host2 link set eth0 up
		ip -n host2 route add default via 10.0.3.1
		ip -n host2 route add default via fd00:3::1
		ip netns exec next2 sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		ip route add 10.0.3.0/24 via 10.0.2.2
		ip route add fd00:3::/64 via fd00:2::2
	`)
	b := &bed{user: listen(t, relayPort), relay: &relay{changed: make(chan struct{}, 1)}}
	for i, name := range []string{"next1", "host2"} {
		h := &host{number: byte(i + 1), netns: name}
		net := 2*i + 1 // of the host
		h.addr = map[bool]netip.Addr{true: netip.AddrFrom4([4]byte{10, 0, byte(net), 2}), false: netip.MustParseAddr(fmt.Sprintf("fd00:%d::2", net))}
		h.local = map[bool]netip.Addr{true: netip.AddrFrom4([4]byte{10, 0, byte(i + 1), 1}), false: netip.MustParseAddr(fmt.Sprintf("fd00:%d::1", i+1))}
		within(t, name, func() { h.conns = listen(t, nodePort) })
		b.hosts[i] = h
	}
	return b
}

// listen binds a port, for each family.
func listen(t *testing.T, port uint16) map[bool]*net.UDPConn {
	out := map[bool]*net.UDPConn{}
	for is4, network := range map[bool]string{true: "udp4", false: "udp6"} {
		c, err := net.ListenUDP(network, &net.UDPAddr{Port: int(port)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		out[is4] = c
	}
	return out
}

// bound returns both hosts as they are bound, by family. Node numbers 3 and 4 are those of IPv6.
func (b *bed) bound(until time.Time) []path.Kept {
	var all []path.Kept
	for _, is4 := range []bool{true, false} {
		node := func(h *host) path.Short {
			if is4 {
				return path.Short{h.number}
			}
			return path.Short{h.number + 2}
		}
		for i, h := range b.hosts {
			all = append(all, path.Kept{
				Node: node(h), Addr: h.at(is4), Local: h.local[is4], Until: until,
				Rows: []path.KeptRow{{Index: index(h, is4), To: node(b.hosts[1-i]), Until: until}},
			})
		}
	}
	return all
}

// forward starts a forwarder.
func (b *bed) forward(t *testing.T, maxRate uint64) {
	t.Helper()
	f, err := Open(Options{Port: relayPort, MaxRate: maxRate, Relay: b.relay, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		t.Fatal(err)
	}
	b.forwarder = f
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() { f.Serve(ctx) })
	b.stop = sync.OnceFunc(func() {
		cancel()
		serving.Wait()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(b.stop)
}

// data is a WireGuard data packet of some length.
func data(index uint32, length int) []byte {
	p := bytes.Repeat([]byte{0x5a}, length)
	copy(p, []byte{4, 0, 0, 0})
	binary.LittleEndian.PutUint32(p[4:], index)
	return p
}

// arrival is where a packet has come.
type arrival string

const (
	atPeer arrival = "the other host"
	atUser arrival = "user space"
)

// send sends a datagram from a host to the relay, and returns where it has come, and from where. It
// fails if that never comes.
func (b *bed) send(t *testing.T, from int, is4 bool, packet []byte) (arrival, netip.AddrPort) {
	t.Helper()
	b.write(t, from, is4, packet)
	return b.await(t, from, is4, packet)
}

func (b *bed) write(t *testing.T, from int, is4 bool, packet []byte) {
	t.Helper()
	h := b.hosts[from]
	if _, err := h.conns[is4].WriteToUDPAddrPort(packet, netip.AddrPortFrom(h.local[is4], relayPort)); err != nil {
		t.Fatal(err)
	}
}

// await waits for a datagram that a host has sent.
func (b *bed) await(t *testing.T, from int, is4 bool, packet []byte) (arrival, netip.AddrPort) {
	t.Helper()
	where, source := b.look(t, from, is4, packet, patience)
	if where == "" {
		t.Fatalf("what host %d has sent has not come", from+1)
	}
	return where, source
}

// look is await for a packet that may be lost: it returns "" then.
func (b *bed) look(t *testing.T, from int, is4 bool, packet []byte, limit time.Duration) (arrival, netip.AddrPort) {
	t.Helper()
	buf := make([]byte, 1<<16)
	for began := time.Now(); time.Since(began) < limit; {
		for where, c := range map[arrival]*net.UDPConn{atPeer: b.hosts[1-from].conns[is4], atUser: b.user[is4]} {
			if err := c.SetReadDeadline(time.Now().Add(5 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			n, source, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(buf[:n], packet) {
				return where, netip.AddrPortFrom(source.Addr().Unmap(), source.Port())
			}
		}
	}
	return "", netip.AddrPort{}
}

// forwards waits until the kernel forwards each way of each family, or no more.
func (b *bed) forwards(t *testing.T, want arrival) {
	t.Helper()
	for _, is4 := range []bool{true, false} {
		for i, h := range b.hosts {
			eventually(t, fmt.Sprintf("packets of host %d come to %s, IPv4 %t", i+1, want, is4), func() bool {
				p := data(index(h, is4), 64)
				b.write(t, i, is4, p)
				got, source := b.look(t, i, is4, p, time.Second) // while something changes, packets are lost
				to := b.hosts[1-i]
				if wanted := netip.AddrPortFrom(to.local[is4], relayPort); got == atPeer && source != wanted {
					t.Fatalf("a packet came from %v, want %v", source, wanted)
				}
				return got == want
			})
		}
	}
}

// ownTable returns our table as nft prints it, "" if there is none.
func ownTable(t *testing.T) string {
	t.Helper()
	all := run(t, "nft list ruleset")
	if i := strings.Index(all, "table netdev meshd {"); i >= 0 {
		return all[i:]
	}
	return ""
}
