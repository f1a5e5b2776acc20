// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	wire "encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/test/lab"
)

// vxlanPort is where nodes receive vxlan.
const vxlanPort = 7947

// vxlanFrame is a vxlan packet (RFC 7348) with a datagram inside.
func vxlanFrame(mac net.HardwareAddr, from, to netip.AddrPort) []byte {
	body := []byte("inside")
	udp := wire.BigEndian.AppendUint16(nil, from.Port())
	udp = wire.BigEndian.AppendUint16(udp, to.Port())
	udp = wire.BigEndian.AppendUint16(udp, uint16(8+len(body)))
	udp = append(append(udp, 0, 0), body...) // without checksum
	ip := []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0, 0, 64, 17, 0, 0}
	ip = append(append(ip, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(wire.BigEndian.Uint16(ip[i:]))
	}
	wire.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	frame := []byte{8, 0, 0, 0, 0, 0, netcfg.RouteProtocol, 0} // our network identifier
	frame = append(append(frame, mac...), 2, 0, 0, 0, 0, 9, 8, 0)
	return append(append(frame, ip...), udp...)
}

// TestHostileVXLAN has pods and a laptop send forged vxlan packets to nodes. The packets
// inside would seem to come from the mesh.
func TestHostileVXLAN(t *testing.T) {
	t.Parallel()
	v, place := newClientVillage(t, mesh.ModeLocation)
	v.full(v.nodes...)
	c := v.laptop(v.nodes[0], place, "mallory")
	c.reaches(v.nodes[0])
	victim, member, far := v.node("aws-2"), v.node("aws-3"), v.node("attic-1")
	gateway := v.node("aws-1")
	out := v.run(victim, "cat", "/sys/class/net/"+netcfg.VXLANName("meshd0")+"/address")
	mac, err := net.ParseMAC(strings.TrimSpace(out))
	v.must(err)

	const port = 4444
	to := netip.AddrPortFrom(v.overlay[victim][0], port)
	frame := vxlanFrame(mac, netip.AddrPortFrom(v.overlay[member][0], port), to)
	var inner *net.UDPConn
	v.must(victim.Do(func() (err error) { inner, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(to)); return err }))
	defer inner.Close()
	arrives := func(from lab.Place, within time.Duration) bool {
		t.Helper()
		v.must(from(func() error {
			conn, err := net.Dial("udp", netip.AddrPortFrom(victim.Address(), vxlanPort).String())
			if err != nil {
				return err
			}
			defer conn.Close()
			for range 3 {
				if _, err := conn.Write(frame); err != nil {
					return err
				}
			}
			return nil
		}))
		v.must(inner.SetReadDeadline(time.Now().Add(within)))
		_, _, err := inner.ReadFromUDP(make([]byte, 16))
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		return err == nil
	}
	if !arrives(member.Do, 10*time.Second) {
		t.Fatal("a member's own packet does not arrive: this test can't fail")
	}
	for inner.SetReadDeadline(time.Now().Add(time.Second)) == nil {
		if _, _, err := inner.ReadFromUDP(make([]byte, 16)); err != nil {
			break // the other two
		}
	}
	for name, from := range map[string]lab.Place{
		"a pod of a member":     v.pods[member].Do,
		"a pod of the gateway":  v.pods[gateway].Do,
		"a pod of the victim":   v.pods[victim].Do,
		"a pod somewhere else":  v.pods[far].Do,
		"a laptop":              c.Host.Do,
		"a node somewhere else": far.Do,
	} {
		if arrives(from, time.Second) {
			t.Errorf("what is in the vxlan packet of %s arrives", name)
		}
	}
	v.full(v.nodes...)
}

// TestHostileHostPort has a pod on the seed node claim our ports as host ports, with the
// rules that the plugin portmap and kube-proxy make. The tunnels stay up, a new node can
// join, and the status names the rule.
func TestHostileHostPort(t *testing.T) {
	t.Parallel()
	v := newVillage(t, func(m *testbed) []*lab.Host {
		return append(m.site("aws", lab.SiteOptions{Underlay: lab.NAT}, "aws-1", "aws-2"), m.site("attic", lab.SiteOptions{Underlay: lab.Home}, "attic-1")...)
	})
	for _, n := range v.nodes {
		v.configure(n, cluster(1, mesh.ModeLocation)...)
	}
	v.live()
	v.full(v.nodes...)
	target := v.nodes[0]
	pod := v.pods[target].Addresses[0].String()
	for _, command := range []string{
		"-N CNI-DN-mallory",
		"-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-DN-mallory",
		"-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-DN-mallory",
		"-A CNI-DN-mallory -p udp --dport 51820 -j DNAT --to-destination " + pod + ":51820",
		"-A CNI-DN-mallory -p udp --dport 7946 -j DNAT --to-destination " + pod + ":7946",
		"-A CNI-DN-mallory -p tcp --dport 7946 -j DNAT --to-destination " + pod + ":7946",
		"-A CNI-DN-mallory -p tcp --dport 7948 -j DNAT --to-destination " + pod + ":7948",
	} {
		v.run(target, "iptables-nft", append([]string{"-w", "-t", "nat"}, strings.Fields(command)...)...)
	}
	v.await(settleLimit, "aware of who asks for its ports", all(
		shows(netcfg.ProblemPort, "UDP port 51820", "CNI-DN-mallory", pod), shows(netcfg.ProblemPort, "TCP port 7948", pod)), target)
	report, _ := target.Command(v.ctx, binary, "check").Output() // whatever else it finds
	if !strings.Contains(report, "TCP port 7946 is meshd's") || !strings.Contains(report, "CNI-DN-mallory") {
		t.Errorf("check names nobody who asks for TCP port 7946:\n%s", report)
	}
	h, err := v.lab.Host(v.ctx, "newcomer", lab.NAT)
	v.must(err)
	newcomer := lab.NewNode(h, binary)
	v.nodes = append(v.nodes, newcomer)
	v.configure(newcomer, cluster(1, mesh.ModeLocation)...)
	v.start(newcomer)
	s := v.settle(settleLimit, v.nodes...)
	v.overlay[newcomer], v.pods[newcomer] = s[len(s)-1].Node.Overlay, v.pod(newcomer, "pod-newcomer")
	v.full(v.nodes...)
}
