// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/wait"
	"github.com/meshd/meshd/test/lab"
)

const (
	dataRounds   = 8                      // a run
	slowStart    = 200 * time.Millisecond // until a connection is up to speed
	transferTime = time.Second
	roundTrips   = 200
)

// dataPath is two ends that reach each other.
type dataPath struct {
	name     string
	from, to lab.Party
}

// measureDataPath compares the way between two pods of a mesh that meshd made with
// that of one made by hand, and with that of two hosts without any tunnel. All are
// in one lab and take turns. Two meshes alike differ by some hundredths as long as they
// live, so each run has others.
func measureDataPath(ctx context.Context, binary string, s samples) (err error) {
	l, err := lab.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	nodes, err := l.Nodes(ctx, binary, lab.NAT, "first", "second")
	if err != nil {
		return err
	}
	meshd, err := meshdPath(ctx, nodes)
	if err != nil {
		return err
	}
	third, err := twoHosts(ctx, l, lab.NAT, "third", "fourth")
	if err != nil {
		return err
	}
	plain, err := plainPath(ctx, third)
	if err != nil {
		return err
	}
	bare, err := barePath(ctx, l)
	if err != nil {
		return err
	}
	ways := []dataPath{meshd, plain, bare}
	if err := wait.Sleep(ctx, calmTime); err != nil {
		return err
	}
	for _, w := range ways { // the first time an emulated machine takes longer
		if _, err := throughput(ctx, w, slowStart); err != nil {
			return err
		}
	}
	for range dataRounds {
		before, err := readAll(nodes)
		if err != nil {
			return err
		}
		began := time.Now()
		rates, times := map[string]float64{}, map[string]float64{}
		for _, w := range ways {
			if rates[w.name], err = throughput(ctx, w, slowStart); err != nil {
				return err
			}
			if times[w.name], err = roundTrip(w); err != nil {
				return err
			}
			s.add("throughput_"+w.name+"_mbit_per_s", rates[w.name])
			s.add("round_trip_"+w.name+"_us", times[w.name])
		}
		after, err := readAll(nodes)
		if err != nil {
			return err
		}
		s.add("throughput_ratio_to_plain_wireguard", rates[meshd.name]/rates[plain.name])
		s.add("latency_ratio_to_plain_wireguard", times[meshd.name]/times[plain.name])
		s.add("throughput_daemon_cpu_percent", 100*(after[0].cpu-before[0].cpu)/time.Since(began).Seconds())
		ways = append(ways[1:], ways[0]) // nobody is always first
	}
	return nil
}

// meshdPath starts the nodes, with a pod on each.
func meshdPath(ctx context.Context, nodes []*lab.Node) (dataPath, error) {
	for _, n := range nodes {
		if err := n.Start(); err != nil {
			return dataPath{}, err
		}
	}
	if err := awaitPairs(ctx, nodes); err != nil {
		return dataPath{}, err
	}
	var ends []lab.Party
	for _, n := range nodes {
		if err := poll(ctx, n, lab.Ready); err != nil {
			return dataPath{}, err
		}
		p, err := n.Pod(ctx, "meshd", "pod")
		if err != nil {
			return dataPath{}, err
		}
		ends = append(ends, lab.Party{At: p.Do, Addr: p.Addresses[0]})
	}
	return dataPath{"meshd", ends[0], ends[1]}, nil
}

// twoHosts makes two hosts.
func twoHosts(ctx context.Context, l *lab.Lab, underlay lab.Underlay, first, second string) (hosts [2]*lab.Host, err error) {
	for i, name := range []string{first, second} {
		if hosts[i], err = l.Host(ctx, name, underlay); err != nil {
			return hosts, err
		}
	}
	return hosts, nil
}

// plainPort is WireGuard's port on hosts of a mesh made by hand.
const plainPort = 51820

// plainPath gives two hosts what a person would make by hand: a WireGuard device, a
// route, a bridge, and a pod on it.
func plainPath(ctx context.Context, hosts [2]*lab.Host) (dataPath, error) {
	var (
		keys [2]wgtypes.Key
		ends []lab.Party
	)
	for i := range keys {
		var err error
		if keys[i], err = wgtypes.GeneratePrivateKey(); err != nil {
			return dataPath{}, fmt.Errorf("make key: %w", err)
		}
	}
	for i, h := range hosts {
		gateway, pod := netip.AddrFrom4([4]byte{10, 99, byte(i), 1}), netip.AddrFrom4([4]byte{10, 99, byte(i), 2})
		other := 1 - i
		if err := h.WriteFile("/run/key", keys[i].String(), 0o600); err != nil {
			return dataPath{}, err
		}
		script := fmt.Sprintf(`set -e
			sysctl -qw net.ipv4.ip_forward=1
			ip link add wg0 mtu 1420 type wireguard
			wg set wg0 listen-port %[1]d private-key /run/key peer %[2]s endpoint %[3]s:%[1]d allowed-ips 10.99.%[4]d.0/24
			ip link set wg0 up
			ip route add 10.99.%[4]d.0/24 dev wg0
			ip link add br0 mtu 1420 type bridge
			ip address add %[5]s/24 dev br0
			ip netns add pod
			ip link add veth0 mtu 1420 type veth peer name eth0 mtu 1420 netns pod
			ip link set veth0 master br0 up
			ip link set br0 up
			ip -n pod address add %[6]s/24 dev eth0
			ip -n pod link set lo up
			ip -n pod link set eth0 up
			ip -n pod route add default via %[5]s`,
			plainPort, keys[other].PublicKey(), hosts[other].Public(), other, gateway, pod)
		if _, err := h.Run(ctx, "sh", "-c", script); err != nil {
			return dataPath{}, err
		}
		ends = append(ends, lab.Party{At: (&lab.Pod{Name: "pod", Host: h}).Do, Addr: pod})
	}
	return dataPath{"plain", ends[0], ends[1]}, nil
}

// barePath makes two hosts that reach each other over the underlay.
func barePath(ctx context.Context, l *lab.Lab) (dataPath, error) {
	hosts, err := twoHosts(ctx, l, lab.Routed, "fifth", "sixth")
	if err != nil {
		return dataPath{}, err
	}
	return dataPath{
		"bare",
		lab.Party{At: hosts[0].Do, Addr: hosts[0].Public()},
		lab.Party{At: hosts[1].Do, Addr: hosts[1].Public()},
	}, nil
}

// throughput returns the megabits a second of one TCP connection, once it is up to
// speed.
func throughput(ctx context.Context, w dataPath, start time.Duration) (rate float64, err error) {
	t, err := startTransfer(ctx, w, start)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, t.stop()) }()
	return t.rate(ctx)
}

// transfer is one TCP connection over which as much is sent as it takes.
type transfer struct {
	name     string // of the data path
	from, to net.Conn
	received atomic.Int64
	ends     errgroup.Group
}

// startTransfer returns a transfer that is up to speed, after some time.
func startTransfer(ctx context.Context, w dataPath, start time.Duration) (*transfer, error) {
	dialing, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	from, to, err := lab.Connect(dialing, w.from.At, w.to)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w.name, err)
	}
	t := &transfer{name: w.name, from: from, to: to}
	t.ends.Go(func() error { return fill(from) })
	t.ends.Go(func() error { return drain(to, &t.received) })
	if err := wait.Sleep(ctx, start); err != nil {
		return nil, errors.Join(err, t.stop())
	}
	return t, nil
}

// rate returns the megabits a second that arrive.
func (t *transfer) rate(ctx context.Context) (float64, error) {
	before, began := t.received.Load(), time.Now()
	err := wait.Sleep(ctx, transferTime)
	bits, seconds := 8*float64(t.received.Load()-before), time.Since(began).Seconds()
	return bits / 1e6 / seconds, err
}

func (t *transfer) stop() error {
	if err := errors.Join(t.from.Close(), t.to.Close(), t.ends.Wait()); err != nil {
		return fmt.Errorf("%s: %w", t.name, err)
	}
	return nil
}

// fill writes until the connection is closed.
func fill(c net.Conn) error {
	block := make([]byte, 128<<10)
	for {
		if _, err := c.Write(block); err != nil {
			return unlessClosed(err)
		}
	}
}

// drain reads until the connection is closed.
func drain(c net.Conn, received *atomic.Int64) error {
	block := make([]byte, 128<<10)
	for {
		n, err := c.Read(block)
		received.Add(int64(n))
		if err != nil {
			return unlessClosed(err)
		}
	}
}

// unlessClosed returns err unless it says that this or the other end was closed.
func unlessClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return nil
	}
	return err
}

// roundTrip returns the median microseconds from a datagram to its answer.
func roundTrip(w dataPath) (float64, error) {
	times, err := roundTripsOf(w)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", w.name, err)
	}
	slices.Sort(times)
	return float64(times[len(times)/2].Nanoseconds()) / 1000, nil
}

func roundTripsOf(w dataPath) ([]time.Duration, error) {
	server, err := listenUDP(w.to)
	if err != nil {
		return nil, err
	}
	defer server.Close()
	go echo(server)
	client, err := listenUDP(w.from)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	to := server.LocalAddr().(*net.UDPAddr).AddrPort()
	buf := make([]byte, 64)
	var times []time.Duration
	for i := range roundTrips {
		began := time.Now()
		if err := client.SetDeadline(began.Add(time.Second)); err != nil {
			return nil, err
		}
		if _, err := client.WriteToUDPAddrPort(fmt.Appendf(nil, "%8d", i), to); err != nil {
			return nil, err
		}
		for {
			n, _, err := client.ReadFromUDPAddrPort(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break // a datagram may be lost
			}
			if err != nil {
				return nil, err
			}
			if string(buf[:n]) == fmt.Sprintf("%8d", i) {
				times = append(times, time.Since(began))
				break
			}
		}
	}
	if len(times) < roundTrips/2 {
		return nil, fmt.Errorf("only %d of %d datagrams came back", len(times), roundTrips)
	}
	return times, nil
}

func listenUDP(p lab.Party) (conn *net.UDPConn, err error) {
	err = p.At(func() error {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Addr, 0)))
		return err
	})
	return conn, err
}

// echo returns datagrams to their senders until the socket is closed.
func echo(conn *net.UDPConn) {
	buf := make([]byte, 64)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		_, _ = conn.WriteToUDPAddrPort(buf[:n], from)
	}
}
