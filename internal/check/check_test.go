// SPDX-License-Identifier: Apache-2.0

package check

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/k3s"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/filter"
	"github.com/meshd/meshd/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func parse(t *testing.T, lines ...string) config.Config {
	t.Helper()
	cfg, err := config.Parse("meshd.yaml", []byte(strings.Join(append([]string{"secret-file: /s"}, lines...), "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// healthy returns the facts of a host without any errors or warnings.
func healthy() Facts {
	uplink := netcfg.Uplink{Link: "eth0", Source: netip.MustParsePrefix("192.168.1.1/24"), MTU: 1500}
	f := Facts{
		Root: true, Capable: true,
		State:  State{Path: "/var/lib/meshd", Read: true, Seen: state.Inspection{Origin: state.Made}, Free: 1 << 30},
		Kernel: Kernel{WireGuard: true, TUN: true, NFT: true, BridgeFilter: true, IPv6: true},
		Links:  []Link{{Name: "lo", Kind: "device"}, {Name: "eth0", Kind: "veth"}, {Name: "kube-bridge", Kind: "bridge"}},
		Host:   netcfg.Facts{Uplinks: []netcfg.Uplink{uplink}, Attached: []netcfg.LAN{{Link: "eth0", Address: uplink.Source}}, MTU: 1500, MTULink: "eth0"},
		Ports: []Port{
			{Network: "udp", Port: 51820, Key: "wireguard.listen-port", State: PortFree},
			{Network: "udp", Port: 7946, Key: "gossip.bind", State: PortTaken, Ours: true},
			{Network: "tcp", Port: 7946, Key: "gossip.bind", State: PortFree},
		},
		CNI: CNI{Read: true, Config: cni.Config{
			ConfDir: "/etc/cni/net.d", BinDir: "/opt/cni/bin", PluginSource: "/usr/lib/cni", Bridge: "kube-bridge",
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")},
		}},
		ClockRead: true, ClockSynced: true,
		Reach: []Reach{{Key: "join[0]", Host: "a.example", Port: 7946}, {Key: "node.endpoint", Host: "b.example"}},
	}
	for _, name := range cni.PluginNames() {
		f.CNI.Status.Plugins = append(f.CNI.Status.Plugins, cni.Plugin{Name: name, InSource: true})
	}
	return f
}

// bad returns the findings that are not OK, one line each.
func bad(findings []Finding) []string {
	var out []string
	for _, f := range findings {
		if f.Level != OK {
			out = append(out, fmt.Sprintf("%s %s: %s → %s", f.Level, f.What, f.Text, f.Advice))
		}
	}
	return out
}

func TestEvaluate(t *testing.T) {
	v6 := []string{"cluster:", "  overlay: [10.4.0.0/16, fd00:4::/112]", "  pods: [10.42.0.0/16, fd00:42::/48]", "  services: [10.43.0.0/16, fd00:43::/112]"}
	located := []string{"cluster: {mode: location}", "node:", "  location: aws", "  internal-ip: 192.168.1.1/24"}
	nobody := mesh.IDOf(nil).String() // of a record without an identity
	tests := []struct {
		name   string
		config []string
		change func(f *Facts)
		want   []string
	}{
		{"healthy", nil, func(*Facts) {}, nil},
		{"healthy, with IPv6", v6, func(*Facts) {}, nil},
		{"not root", nil, func(f *Facts) { f.Root, f.Capable, f.Kernel = false, false, Kernel{} }, []string{
			"warning permission: not root: kernel, firewall and device were not checked → run: sudo meshd check",
		}},
		{"a container", nil, func(f *Facts) { f.Capable, f.Kernel = false, Kernel{} }, []string{
			"error permission: root, but without CAP_NET_ADMIN or CAP_SYS_ADMIN: kernel, firewall and device were not checked, and meshd can't work → run meshd on the host itself, or grant the container these capabilities",
		}},
		{"secret", nil, func(f *Facts) {
			f.Config = []error{&config.Error{File: "meshd.yaml", Line: 1, Key: "secret-file", Problem: "/s is open to other users", Advice: "run: chmod 600 /s"}, errors.New("read host name: no")}
		}, []string{
			"error configuration: meshd.yaml:1: secret-file: /s is open to other users → run: chmod 600 /s",
			"error configuration: read host name: no → make the file readable",
		}},
		{"secret that only root may read", nil, func(f *Facts) {
			f.Root, f.Capable, f.Kernel, f.Config = false, false, Kernel{}, []error{fmt.Errorf("/s can't be opened: %w", unix.EACCES)}
		}, []string{
			"warning permission: not root: kernel, firewall and device were not checked → run: sudo meshd check",
			"warning configuration: /s can't be opened: permission denied → run: sudo meshd check",
		}},
		{"no machine-id", nil, func(f *Facts) {
			f.State.MachineIDErr = errors.New("read machine ID: /etc/machine-id is empty; run: systemd-machine-id-setup")
		}, []string{
			"error state: read machine ID: /etc/machine-id is empty → run: systemd-machine-id-setup",
		}},
		{"cloned", nil, func(f *Facts) { f.State.Seen.Origin = state.Cloned }, []string{
			"warning state: /var/lib/meshd/identity.json belongs to another machine: this node will make itself a new identity → none needed if this machine is a copy; if it is not, restore the old /etc/machine-id",
		}},
		{"damaged, and a disk that is full and read-only", nil, func(f *Facts) {
			f.State.Err = fmt.Errorf("read identity: %w; restore the file", state.ErrDamaged)
			f.State.WriteErr, f.State.Free = unix.EROFS, 4096
		}, []string{
			"error state: read identity: damaged → restore the file",
			"error state: /var/lib/meshd can't be written to: read-only file system → make the directory writable: is its file system mounted read-only?",
			"error state: /var/lib/meshd has 4 KiB of disk space left → free some space",
		}},
		{"little space", nil, func(f *Facts) { f.State.Free = 3 << 20 }, []string{
			"warning state: /var/lib/meshd has 3 MiB of disk space left → free some space",
		}},
		{"no WireGuard in the kernel", nil, func(f *Facts) { f.Kernel.WireGuard = false }, []string{
			"warning wireguard: the kernel has no WireGuard; meshd will use its own, which is slower, and traffic pauses while the daemon restarts → install a kernel with WireGuard (Linux 5.6 and later have it), and run: modprobe wireguard",
		}},
		{"no WireGuard at all", nil, func(f *Facts) { f.Kernel.WireGuard, f.Kernel.TUN = false, false }, []string{
			"error wireguard: the kernel has no WireGuard, and there is no /dev/net/tun for meshd's own → install a kernel with WireGuard (Linux 5.6 and later have it), and run: modprobe wireguard; or run: modprobe tun",
		}},
		{"kernel WireGuard wanted", []string{"wireguard: {implementation: kernel}"}, func(f *Facts) { f.Kernel.WireGuard = false }, []string{
			"error wireguard: the kernel has no WireGuard, but wireguard.implementation is kernel → install a kernel with WireGuard (Linux 5.6 and later have it), and run: modprobe wireguard; or set wireguard.implementation to auto",
		}},
		{"userspace WireGuard wanted", []string{"wireguard: {implementation: userspace}"}, func(f *Facts) { f.Kernel.WireGuard = false }, nil},
		{"no nft", nil, func(f *Facts) { f.Kernel.NFT = false }, []string{
			"error nftables: the program nft is not installed, or not in the PATH → run: apt install nftables",
		}},
		{"no nf_tables", nil, func(f *Facts) { f.Kernel.FirewallErr = unix.EOPNOTSUPP }, []string{
			"error nftables: the kernel or nft refuse meshd's rules: operation not supported → run: modprobe -a nf_tables nft_fib_inet nft_masq nft_ct; if these modules are missing, install another kernel",
		}},
		{"no br_netfilter", nil, func(f *Facts) { f.Kernel.BridgeFilter = false }, []string{
			"error kernel: the module br_netfilter is not available: pods of one node may not reach each other through Services, and the node does not come online → install a kernel with br_netfilter, and run: modprobe br_netfilter (in a container, on its host)",
		}},
		{"no br_netfilter, no pods", []string{"cni: {enabled: false}"}, func(f *Facts) { f.Kernel.BridgeFilter = false }, nil},
		{"IPv6 off, without IPv6 ranges", nil, func(f *Facts) { f.Kernel.IPv6 = false }, nil},
		{"IPv6 off, with IPv6 ranges", v6, func(f *Facts) { f.Kernel.IPv6 = false }, []string{
			"error kernel: the cluster has IPv6 ranges, and IPv6 is off on this host → switch it on (no ipv6.disable=1 at boot; sysctl net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0), or leave IPv6 ranges out",
		}},
		{"foreign links", nil, func(f *Facts) { f.ForeignDevice, f.Links[2].Kind = true, "dummy" }, []string{
			"error links: there is a link meshd0 which is not meshd's → delete it (ip link delete meshd0), or set wireguard.interface to another name",
			`error links: the link kube-bridge is of kind "dummy" and not a bridge → delete it (ip link delete kube-bridge), or set cni.bridge to another name`,
		}},
		{"ports", nil, func(f *Facts) {
			f.Ports[0].State = PortTaken
			f.Ports[1].Ours, f.Ports[1].Process = false, Process{"serf", 7}
			f.Ports[2].State, f.Ports[2].Address = PortForeign, netip.MustParseAddr("192.0.2.9")
		}, []string{
			"error ports: UDP port 51820 (wireguard.listen-port) is taken by another program → stop that program, or set wireguard.listen-port to another port",
			"error ports: UDP port 7946 (gossip.bind) is taken by serf (pid 7) → stop that program, or set gossip.bind to another port",
			"error ports: TCP port 7946 is the port of gossip.bind, but 192.0.2.9 is not an address of this host → set gossip.bind to an address of this host, or to a port alone",
		}},
		{"vxlan", located, func(f *Facts) {
			f.ForeignVXLAN = true
			f.Ports = append(f.Ports, Port{Network: "udp", Port: 7947, Key: vxlanKey, State: PortTaken, Process: Process{"flanneld", 7}})
		}, []string{
			"error links: there is a link meshd0-vx which is not meshd's → delete it (ip link delete meshd0-vx), or set wireguard.interface to another name",
			"error ports: UDP port 7947 (cluster.encapsulation) is taken by flanneld (pid 7) → stop that program, or set cluster.encapsulation to never on all nodes",
		}},
		{"foreign VXLAN device, mode full", located[1:], func(f *Facts) { f.ForeignVXLAN = true }, nil},
		{"location without a private address", located[:3], func(*Facts) {}, []string{
			"error location: node.location is aws, but this host has no private address on a network card → set node.internal-ip to its address in that location's network, for example 192.168.10.1/24, or remove node.location",
		}},
		{"internal IP that no link has", located, func(f *Facts) { f.Host.Attached = nil }, []string{
			"warning internal ip: node.internal-ip is 192.168.1.1/24, which no link of this host has → set node.internal-ip to an address that ip address shows, or remove it",
		}},
		{"port of a program that only root can see", nil, func(f *Facts) {
			f.Root, f.Capable, f.Kernel, f.Ports[0].State = false, false, Kernel{}, PortTaken
		}, []string{
			"warning permission: not root: kernel, firewall and device were not checked → run: sudo meshd check",
			"warning ports: UDP port 51820 (wireguard.listen-port) is taken, maybe by meshd itself → run: sudo meshd check",
		}},
		{"no default route", nil, func(f *Facts) { f.Host = netcfg.Facts{} }, []string{
			"warning mtu: this host has no default route → give it one, so that it reaches the other nodes",
		}},
		{"MTU too large", []string{"wireguard: {mtu: 1450}"}, func(*Facts) {}, []string{
			"warning mtu: wireguard.mtu is 1450, but only 1420 fit through the 1500 of eth0 → set wireguard.mtu to auto",
		}},
		{"MTU too small for IPv6", v6, func(f *Facts) { f.Host.MTU = 1300 }, []string{
			"warning mtu: IPv6 needs an MTU of 1280 inside the tunnels, and only 1220 fit through the 1300 of eth0: packets will come in fragments → raise its MTU to 1360, or use IPv4 ranges only",
		}},
		{"overlaps", nil, func(f *Facts) {
			network := func(p, link string) mesh.AttachedNetwork {
				return mesh.AttachedNetwork{Prefix: netip.MustParsePrefix(p), Link: link}
			}
			routed := network("10.0.0.0/8", "eth0")
			routed.Routed = true
			f.Host.Nearby.Attached = []mesh.AttachedNetwork{network("192.168.1.0/24", "eth0"), routed, network("10.4.7.0/24", "eth1"), network("10.42.0.0/24", "cni0"), network("10.43.128.0/17", "tun5")}
		}, []string{
			"error ranges: cluster.overlay 10.4.0.0/16 overlaps 10.4.7.0/24, to which this host is attached by eth1 → choose another range for cluster.overlay, the same on all nodes, such as 172.16.0.0/16, which is free on this host; or give that network other addresses",
			"error ranges: cluster.pods 10.42.0.0/16 overlaps 10.42.0.0/24, to which this host is attached by cni0 → if another pod network was here before, end its pods with k3s-killall.sh; that removes cni0, too",
			"error ranges: cluster.services 10.43.0.0/16 overlaps 10.43.128.0/17, to which this host is attached by tun5 → choose another range for cluster.services, the same on all nodes, such as 172.18.0.0/16, which is free on this host; or give that network other addresses",
			"warning ranges: cluster.overlay 10.4.0.0/16 overlaps 10.0.0.0/8, to which this host has a route by eth0: the mesh takes that part of it → choose another range for cluster.overlay, the same on all nodes, such as 172.16.0.0/16, which is free on this host; or give that network other addresses",
			"warning ranges: cluster.pods 10.42.0.0/16 overlaps 10.0.0.0/8, to which this host has a route by eth0: the mesh takes that part of it → choose another range for cluster.pods, the same on all nodes, such as 172.17.0.0/16, which is free on this host; or give that network other addresses",
			"warning ranges: cluster.services 10.43.0.0/16 overlaps 10.0.0.0/8, to which this host has a route by eth0: the mesh takes that part of it → choose another range for cluster.services, the same on all nodes, such as 172.18.0.0/16, which is free on this host; or give that network other addresses",
		}},
		{"pods of another program", []string{"cni: {enabled: false}"}, func(f *Facts) {
			f.Host.Nearby.Attached = []mesh.AttachedNetwork{{Prefix: netip.MustParsePrefix("10.42.3.0/24"), Link: "cni0", Containers: true}}
		}, nil},
		{"no plugins, another network, a directory that is not writable", nil, func(f *Facts) {
			f.CNI.Status.Plugins[0].InSource, f.CNI.Status.Plugins[3].InSource = false, false
			f.CNI.Status.Others = []string{"05-other.conflist", "99-last.conflist"}
			f.CNI.Unwritable = []string{"/opt/cni/bin"}
		}, []string{
			"error cni: the plugins bridge, portmap are neither in /opt/cni/bin nor in /usr/lib/cni → run: apt install containernetworking-plugins",
			"error cni: containerd uses /etc/cni/net.d/05-other.conflist and not 10-meshd.conflist, which sorts after it → remove that network from the host, or leave the pods to it with cni: {enabled: false}",
			"error cni: /opt/cni/bin can't be written to → make it writable, or name another one with cni.conf-dir and cni.bin-dir",
		}},
		{"a conflist of our name", nil, func(f *Facts) { f.CNI.Status.Conflist = []byte(`{"name": "other"}`) }, []string{
			`error cni: install conflist: /etc/cni/net.d/10-meshd.conflist exists for the network "other" → move it away`,
		}},
		{"clock", nil, func(f *Facts) { f.ClockSynced = false }, []string{
			"warning clock: the system clock is not synchronised; which of two nodes has an address is decided by who claimed it first → run: timedatectl set-ntp true (apt install systemd-timesyncd), or install chrony",
		}},
		{"no host reached", nil, func(f *Facts) {
			f.Reach[0].DialErr, f.Reach[1].ResolveErr = unix.ECONNREFUSED, errors.New("no such host")
		}, []string{
			"warning join[0]: a.example does not answer on TCP port 7946: connection refused → make sure that meshd runs there, and open TCP and UDP port 7946 to it; the first node of a mesh needs no join",
			"warning node.endpoint: b.example does not resolve: no such host → correct the name, or check the resolver in /etc/resolv.conf",
		}},
		{"no host reached at a port of TLS", nil, func(f *Facts) { f.Reach[0].Port, f.Reach[0].DialErr = 443, unix.ECONNREFUSED }, []string{
			"warning join[0]: a.example does not answer on TCP port 443: connection refused → see that relay.listen there is :443, and that the port is open; where only a proxy gets out, HTTPS_PROXY names it",
		}},
		{"no host reached through a proxy", nil, func(f *Facts) {
			f.Reach[0].Port, f.Reach[0].Proxy = 8443, "proxy.example.com:3128"
			f.Reach[0].DialErr = errors.New("connect to a.example:8443 through the proxy proxy.example.com:3128: it answered 403 Forbidden")
		}, []string{
			"warning join[0]: a.example does not answer on TCP port 8443: connect to a.example:8443 through the proxy proxy.example.com:3128: it answered 403 Forbidden → see that relay.listen there is :8443, and that the proxy allows connections to it; NO_PROXY names hosts that are reached without",
		}},
		{"another server", nil, func(f *Facts) { f.Reach[0].Port, f.Reach[0].Foreign = 443, true }, []string{
			"warning join[0]: a.example has a certificate at TCP port 443 that is not a node's: another server is there, or something on the way opens TLS → see that relay.listen names this port there; a load balancer with a certificate of its own is no fault",
		}},
		{"another secret", nil, func(f *Facts) { f.Reach[0].LookErr = fmt.Errorf("greet: %w", gossip.ErrSecret) }, []string{
			"error join[0]: a.example:7946 has another secret, or another program answers there → copy the secret of a node to /s, mode 0600, or see that the port is that of its gossip.bind",
		}},
		{"no node", nil, func(f *Facts) { f.Reach[0].LookErr = errors.New("i/o timeout") }, []string{
			"warning join[0]: something answers at a.example:7946, but not as a node of this version: i/o timeout → see that meshd runs there, and that this is the port of its gossip.bind",
		}},
		{"other ranges", nil, func(f *Facts) {
			f.Reach[0].Looked.Differs = []string{"cluster.pods is [10.42.0.0/16] here, [10.9.0.0/16] on a.example:7946"}
		}, []string{
			"error join[0]: cluster.pods is [10.42.0.0/16] here, [10.9.0.0/16] on a.example:7946 → write the same into both files",
		}},
		{"only itself", nil, func(f *Facts) { f.Reach[0].Own = true }, []string{
			"warning join: names only this host: it begins a mesh of its own → name another node, or leave it out on the first node",
		}},
		{"a taken name", []string{"node: {name: aws-1}"}, func(f *Facts) {
			f.Reach[0].Looked.Records = []mesh.Record{{Name: "AWS-1", Claim: mesh.Claim{Slot: mesh.None}}}
		}, []string{
			"error taken: the name aws-1 is that of node AWS-1 (" + nobody + ") → set another node.name; if it is this host before it was installed anew, run on another node: meshd forget " + nobody,
		}},
		{"its own name", []string{"node: {name: aws-1}"}, func(f *Facts) {
			f.State.Seen.ID = mesh.IDOf(nil)
			f.Reach[0].Looked.Records = []mesh.Record{{Name: "aws-1", Claim: mesh.Claim{Slot: mesh.None}}}
		}, nil},
		{"a client's name", []string{"node: {name: aws-1}"}, func(f *Facts) { f.Reach[0].Looked.Clients = []mesh.Client{{Name: "aws-1"}} }, []string{
			"error taken: the name aws-1 is that of a client → set another node.name",
		}},
		{"a taken slot, and a taken network, known from two nodes", []string{"node: {name: aws-1, pod-cidr: [10.42.7.0/24], allowed-location-ips: [192.168.9.0/24]}"}, func(f *Facts) {
			f.Reach[0].Looked.Records = []mesh.Record{{Name: "gcp-1", Claim: mesh.Claim{Slot: 7}, AllowedLocationIPs: []netip.Prefix{netip.MustParsePrefix("192.168.9.0/24")}}}
			f.Reach = append(f.Reach, f.Reach[0])
		}, []string{
			"error taken: the pod CIDRs of node.pod-cidr, [10.42.7.0/24], are those of node gcp-1 (" + nobody + ") → choose another one, or leave node.pod-cidr out",
			"error taken: 192.168.9.0/24 of node.allowed-location-ips is behind node gcp-1 (" + nobody + "), too → name it on nodes of one location only: elsewhere it is another network, and nobody is sent to either",
		}},
		{"a network of the same location", []string{"node: {name: aws-1, location: aws, internal-ip: 192.168.1.1/24, allowed-location-ips: [192.168.9.0/24]}"}, func(f *Facts) {
			f.Reach[0].Looked.Records = []mesh.Record{{Name: "aws-2", Location: "aws", Claim: mesh.Claim{Slot: mesh.None}, AllowedLocationIPs: []netip.Prefix{netip.MustParsePrefix("192.168.9.0/24")}}}
		}, nil},
		{"many nodes, room enough", nil, func(f *Facts) { f.Running, f.Nodes = true, 60 }, nil},
		{"many nodes, little room", []string{"cluster: {pods: [10.42.0.0/18]}"}, func(f *Facts) { f.Running, f.Nodes = true, 60 }, []string{
			"warning size: 60 nodes are known, and the ranges have room for 4 more → run meshd forget for nodes that are gone; for a larger mesh, plan one with wider cluster.overlay and cluster.pods",
		}},
		{"few nodes, no room", []string{"cluster: {pods: [10.42.0.0/22]}"}, func(f *Facts) { f.Running, f.Nodes = true, 4 }, []string{
			"warning size: 4 nodes are known, and the ranges have room for 0 more → run meshd forget for nodes that are gone; for a larger mesh, plan one with wider cluster.overlay and cluster.pods",
		}},
		{"firewall can't be read", nil, func(f *Facts) { f.Unread = []Unread{{"firewall", unix.EPERM}} }, []string{
			"warning firewall: could not be checked: operation not permitted → check it by hand",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := healthy()
			tt.change(&f)
			findings := Evaluate(parse(t, tt.config...), f)
			if diff := cmp.Diff(tt.want, bad(findings)); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
			for _, f := range findings {
				if (f.Advice == "") != (f.Level == OK) {
					t.Errorf("%+v: want advice for errors and warnings, and none for OK", f)
				}
			}
		})
	}
}

// rules returns a table as iptables prints it. Without a program, meshd can't add rules.
func rules(b filter.Backend, program, text string) filter.Table {
	t := filter.Parse(b, "ip", "filter", text)
	t.Program = program
	return t
}

func TestEvaluateK3s(t *testing.T) {
	const unit, file, own = "/etc/systemd/system/k3s.service", "/etc/rancher/k3s/config.yaml", "/etc/rancher/k3s/config.yaml.d/meshd.yaml"
	good := map[string]k3s.Value{"node-ip": {Text: "10.4.0.1", From: file}, "flannel-backend": {Text: "none", From: file}}
	with := func(more map[string]k3s.Value) map[string]k3s.Value {
		all := maps.Clone(good)
		maps.Copy(all, more)
		return all
	}
	writes := []string{"k3s: {write-config: true}"}
	overlay := []netip.Addr{netip.MustParseAddr("10.4.0.1")}
	for _, tt := range []struct {
		name     string
		config   []string
		overlay  []netip.Addr
		settings k3s.Settings
		want     []string
	}{
		{"none", nil, overlay, k3s.Settings{}, nil},
		{"a good server", nil, overlay, k3s.Settings{Role: k3s.Server, Values: good}, nil},
		{"a good agent", nil, overlay, k3s.Settings{Role: k3s.Agent, Values: map[string]k3s.Value{"node-ip": good["node-ip"]}}, nil},
		{"a server without settings", nil, overlay, k3s.Settings{Role: k3s.Server}, []string{
			"warning k3s: node-ip is not set: k3s will use an address of this host that other nodes may not reach → write into " + own + ": node-ip: 10.4.0.1; or set k3s.write-config to true",
			"error k3s: flannel-backend is vxlan, but must be none (meshd is the pods' network) → write into " + own + ": flannel-backend: none; or set k3s.write-config to true",
		}},
		{"an agent without settings, no daemon", nil, nil, k3s.Settings{Role: k3s.Agent}, []string{
			"warning k3s: node-ip is not set: k3s will use an address of this host that other nodes may not reach → write into " + own +
				": node-ip: ADDRESS, this node's overlay address as meshd status shows it; or set k3s.write-config to true",
		}},
		{"meshd will write all settings", writes, overlay, k3s.Settings{Role: k3s.Server}, nil},
		{"no role yet", writes, overlay, k3s.Settings{}, []string{
			"warning k3s: k3s is not installed yet, and k3s.role is auto: what only servers need is not written for it → set k3s.role to server or agent before you install k3s",
		}},
		{"a new server, before meshd has run", []string{"k3s: {write-config: true, role: server}"}, nil, k3s.Settings{}, nil},
		{"a role before k3s is installed", []string{"k3s: {write-config: true, role: server}"}, overlay, k3s.Settings{}, nil},
		{"the command line overrides the drop-in", writes, overlay, k3s.Settings{Role: k3s.Server, Values: map[string]k3s.Value{"node-ip": {Text: "192.0.2.1", From: unit}}}, []string{
			"error k3s: node-ip is 192.0.2.1, which is not this node's overlay address → write --node-ip=10.4.0.1 into " + unit,
		}},
		{"another address, no daemon", nil, nil, k3s.Settings{Role: k3s.Agent, Values: map[string]k3s.Value{"node-ip": {Text: "192.0.2.1", From: file}}}, []string{
			"error k3s: node-ip is 192.0.2.1, which is not this node's overlay address → write into " + file + ": node-ip: ADDRESS, this node's overlay address as meshd status shows it",
		}},
		{"other ranges", nil, overlay, k3s.Settings{Role: k3s.Server, Values: with(map[string]k3s.Value{"cluster-cidr": {Text: "10.52.0.0/16", From: file}, "service-cidr": {Text: "10.53.0.0/16", From: file}})}, []string{
			"error k3s: cluster-cidr is 10.52.0.0/16, but must be 10.42.0.0/16 (cluster.pods) → write into " + file + ": cluster-cidr: 10.42.0.0/16",
			"error k3s: service-cidr is 10.53.0.0/16, but must be 10.43.0.0/16 (cluster.services) → write into " + file + ": service-cidr: 10.43.0.0/16",
		}},
		{"advertise-address outside of the mesh", nil, overlay, k3s.Settings{Role: k3s.Server, Values: with(map[string]k3s.Value{"advertise-address": {Text: "192.0.2.1", From: file}})}, []string{
			"warning k3s: advertise-address is 192.0.2.1, which is not in the mesh: agents will talk to this server outside of it → write into " + file + ": advertise-address: the node's overlay address",
		}},
		{"external address", nil, overlay, k3s.Settings{Role: k3s.Server, Values: with(map[string]k3s.Value{"node-external-ip": {Text: "192.0.2.1", From: file}})}, []string{
			"error k3s: node-external-ip is set without advertise-address, and pulls the agents out of the mesh → write into " + own + ": advertise-address: the node's overlay address; or set k3s.write-config to true",
		}},
		{"etcd in several places", []string{"k3s: {write-config: true, etcd: wan}"}, overlay, k3s.Settings{Role: k3s.Server}, nil},
		{"etcd in several places, nothing writes it", []string{"k3s: {etcd: wan}"}, overlay, k3s.Settings{Role: k3s.Server, Values: good}, []string{
			`warning k3s: k3s.etcd is wan, but etcd-arg is "", without heartbeat-interval=250 and election-timeout=4750 → write into ` + own +
				": etcd-arg+: [heartbeat-interval=250, election-timeout=4750]; or set k3s.write-config to true",
		}},
		{"etcd in several places, replaced by a later file", []string{"k3s: {write-config: true, etcd: wan}"}, overlay, k3s.Settings{Role: k3s.Server, Values: with(map[string]k3s.Value{"etcd-arg": {Text: "snapshot-count=1", From: own}})}, []string{
			`warning k3s: k3s.etcd is wan, but etcd-arg is "snapshot-count=1", without heartbeat-interval=250 and election-timeout=4750 → write into ` + own +
				": etcd-arg+: [heartbeat-interval=250, election-timeout=4750], with its other entries",
		}},
		{"etcd in several places, replaced by the command line", []string{"k3s: {write-config: true, etcd: wan}"}, overlay, k3s.Settings{Role: k3s.Server, Values: with(map[string]k3s.Value{"etcd-arg": {Text: "snapshot-count=1", From: unit}})}, []string{
			`warning k3s: k3s.etcd is wan, but etcd-arg is "snapshot-count=1", without heartbeat-interval=250 and election-timeout=4750 → write --etcd-arg=heartbeat-interval=250 --etcd-arg=election-timeout=4750 into ` + unit,
		}},
		{"an agent with servers in several places", []string{"k3s: {etcd: wan}"}, overlay, k3s.Settings{Role: k3s.Agent, Values: map[string]k3s.Value{"node-ip": good["node-ip"]}}, nil},
		{"another name", []string{"node: {name: a}"}, overlay, k3s.Settings{Role: k3s.Agent, Values: with(map[string]k3s.Value{"node-name": {Text: "b", From: file}})}, []string{
			"warning k3s: node-name is b, and node.name is a: meshd and kubectl call this host by different names → write into " + file + ": node-name: a",
		}},
		{"open to everybody", nil, overlay, k3s.Settings{Role: k3s.Agent, Values: with(map[string]k3s.Value{"bind-address": {Text: "0.0.0.0", From: file}})}, []string{
			"warning k3s: bind-address is 0.0.0.0, which is not in the mesh: k3s's ports are open to whoever reaches this host there → write into " + file + ": bind-address: the node's overlay address",
		}},
		{"a list that meshd adds to", writes, overlay, k3s.Settings{Role: k3s.Agent, Values: map[string]k3s.Value{"kube-proxy-arg": {Text: "a=b", From: file}}}, nil},
		{"a list that replaces meshd's", writes, overlay, k3s.Settings{Role: k3s.Agent, Values: map[string]k3s.Value{"kube-proxy-arg": {Text: "a=b", From: own}}}, []string{
			"warning k3s: kube-proxy-arg in " + own + " replaces what meshd writes: NodePorts are open to whoever reaches this host → write kube-proxy-arg+ there, with a + at the end",
		}},
		{"a list on the command line that replaces meshd's", writes, overlay, k3s.Settings{Role: k3s.Agent, Values: map[string]k3s.Value{"kube-proxy-arg": {Text: "a=b", From: unit}}}, []string{
			"warning k3s: kube-proxy-arg in " + unit + " replaces what meshd writes: NodePorts are open to whoever reaches this host → write --kube-proxy-arg=nodeport-addresses=primary there, too",
		}},
		{"a list with other addresses for NodePorts", writes, overlay, k3s.Settings{Role: k3s.Agent, Values: map[string]k3s.Value{"kube-proxy-arg": {Text: "nodeport-addresses=192.0.2.0/24", From: own}}}, nil},
		{"without kube-proxy", nil, overlay, k3s.Settings{Role: k3s.Server, Values: with(map[string]k3s.Value{"disable-kube-proxy": {Text: "true", From: file}})}, []string{
			"warning k3s: disable-kube-proxy is set in " + file + ": Services work only if something else forwards to their pods → remove it, unless you run such a program",
		}},
		{"with kube-proxy", nil, overlay, k3s.Settings{Role: k3s.Server, Values: with(map[string]k3s.Value{"disable-kube-proxy": {Text: "false", From: file}})}, nil},
		{"another resolver", []string{"cluster: {dns: {address: 10.43.0.10}}"}, overlay, k3s.Settings{Role: k3s.Server, Values: with(map[string]k3s.Value{"cluster-dns": {Text: "10.43.0.53", From: file}, "cluster-domain": {Text: "corp.example", From: file}})}, []string{
			"warning k3s: cluster-dns is 10.43.0.53, and cluster.dns.address is 10.43.0.10: laptops with meshd connect look up Services in vain → write into " + file + ": cluster-dns: 10.43.0.10",
			"warning k3s: cluster-domain is corp.example, and cluster.dns.domain is cluster.local: laptops with meshd connect look up Services in vain → write into " + file + ": cluster-domain: cluster.local",
		}},
		{"a resolver in both families", []string{"cluster: {dns: {address: 10.43.0.10}}"}, overlay, k3s.Settings{Role: k3s.Server, Values: with(map[string]k3s.Value{"cluster-dns": {Text: "10.43.0.10,fd43::a", From: file}})}, nil},
		{"another domain than k3s's own", []string{"cluster: {dns: {domain: corp.example}}"}, overlay, k3s.Settings{Role: k3s.Server, Values: good}, []string{
			"warning k3s: cluster-domain is cluster.local, and cluster.dns.domain is corp.example: laptops with meshd connect look up Services in vain → write into " + own + ": cluster-domain: corp.example; or set k3s.write-config to true",
		}},
		{"a second server that joins outside of the mesh", nil, overlay, k3s.Settings{Role: k3s.Server, Values: with(map[string]k3s.Value{"server": {Text: "https://192.0.2.1:6443", From: file}})}, []string{
			"warning k3s: server is https://192.0.2.1:6443 in " + file + ", which is not in the mesh: that port has to be open, and k3s needs it to start here → write https://ADDRESS:6443 there, with the server's overlay address",
		}},
		{"a server outside of the mesh", nil, overlay, k3s.Settings{Role: k3s.Agent, Values: with(map[string]k3s.Value{"server": {Text: "https://192.0.2.1:6443", From: file}})}, []string{
			"warning k3s: server is https://192.0.2.1:6443 in " + file + ", which is not in the mesh: that port has to be open, and k3s needs it to start here → write https://ADDRESS:6443 there, with the server's overlay address",
		}},
		{"a server in the mesh", nil, overlay, k3s.Settings{Role: k3s.Agent, Values: with(map[string]k3s.Value{"server": {Text: "https://10.4.0.7:6443", From: file}})}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := healthy()
			f.K3s, f.Overlay = tt.settings, tt.overlay
			if diff := cmp.Diff(tt.want, bad(Evaluate(parse(t, tt.config...), f))); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
		})
	}
}

// TestEvaluateEtcd has a server of k3s know of others.
func TestEvaluateEtcd(t *testing.T) {
	const ms = time.Millisecond
	const restart = "reload meshd there, and restart k3s, one server after the other"
	far := "warning k3s: the server c answers after 84ms, and k3s.etcd is lan: when a place is lost, k3s may restart on the other servers, too → set k3s.etcd to wan on all servers, " + restart
	for _, tt := range []struct {
		name    string
		role    k3s.Role
		etcd    string
		values  map[string]k3s.Value
		members []Member
		want    []string
	}{
		{"nearby", k3s.Server, "lan", nil, []Member{{"b", "lan", 30 * ms}, {"c", "lan", 0}}, nil},
		{"far away", k3s.Server, "lan", nil, []Member{{"b", "lan", 31 * ms}, {"c", "lan", 84 * ms}}, []string{far}},
		{"far away, as configured", k3s.Server, "wan", nil, []Member{{"b", "wan", 31 * ms}, {"c", "wan", 84 * ms}}, nil},
		{"far away, with timings of somebody's own", k3s.Server, "lan", map[string]k3s.Value{"etcd-arg": {Text: "election-timeout=4000", From: "/etc/rancher/k3s/config.yaml"}}, []Member{{"b", "lan", 84 * ms}}, nil},
		{"not a server", k3s.Agent, "lan", nil, []Member{{"b", "lan", 84 * ms}}, nil},
		{"with a database elsewhere", k3s.Server, "lan", map[string]k3s.Value{"datastore-endpoint": {Text: "postgres://db.example.com/k3s", From: "/etc/rancher/k3s/config.yaml"}}, []Member{{"b", "wan", 84 * ms}}, nil},
		{"others differ", k3s.Server, "wan", nil, []Member{{"b", "lan", 84 * ms}, {"c", "wan", 84 * ms}, {"d", "lan", 0}}, []string{
			"warning k3s: k3s.etcd is wan here, and lan on b, lan on d: servers with shorter timings disturb the others by elections → write the same into /etc/meshd.yaml on all servers, " + restart,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := healthy()
			f.K3s, f.Overlay, f.Members = k3s.Settings{Role: tt.role, Values: tt.values}, []netip.Addr{netip.MustParseAddr("10.4.0.1")}, tt.members
			if diff := cmp.Diff(tt.want, bad(Evaluate(parse(t, "k3s: {write-config: true, etcd: "+tt.etcd+"}"), f))); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
		})
	}
}

// TestEvaluateK3sCertificate has a server of k3s keep a certificate from before it was in the mesh.
func TestEvaluateK3sCertificate(t *testing.T) {
	const path = "/var/lib/rancher/k3s/server/tls/dynamic-cert.json"
	overlay, old := netip.MustParseAddr("10.4.0.1"), netip.MustParseAddr("192.0.2.1")
	for _, tt := range []struct {
		name string
		cert k3s.Certificate
		want []string
	}{
		{"none", k3s.Certificate{}, nil},
		{"old", k3s.Certificate{Path: path, Addresses: []netip.Addr{old}}, []string{
			"error k3s: k3s keeps a certificate in " + path + " that is not for 10.4.0.1, where it is to listen: it will not start → stop k3s, remove the file, and start k3s, which makes another one; " +
				"restart it once more when kubectl get nodes -o wide shows 10.4.0.1, for NodePorts are closed there until then",
		}},
		{"new", k3s.Certificate{Path: path, Addresses: []netip.Addr{old, overlay}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := healthy()
			f.K3s, f.K3sCert, f.Overlay = k3s.Settings{Role: k3s.Server}, tt.cert, []netip.Addr{overlay}
			if diff := cmp.Diff(tt.want, bad(Evaluate(parse(t, "k3s: {write-config: true}"), f))); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEvaluateFirewall(t *testing.T) {
	const everyForward = "from the mesh, to the mesh, from pods, of replies to pods"
	const everyInput = "to UDP port 51820, to UDP port 7946, to TCP port 7946, of replies to this host, from the mesh to this host, from pods to this host"
	nft := func(name, chain string, c filter.Chain) filter.Table {
		return filter.Table{Backend: filter.NFT, Family: "inet", Name: name, Chains: map[string]filter.Chain{chain: c}}
	}
	tests := []struct {
		name   string
		config []string
		table  filter.Table
		want   []string
	}{
		{"open", nil, rules(filter.XTNFT, "", "-P INPUT ACCEPT\n-P FORWARD ACCEPT"), nil},
		{"iptables, to which meshd adds rules", nil, rules(filter.XTNFT, "iptables-nft", "-P FORWARD DROP\n-P INPUT DROP"), nil},
		{"iptables is missing", []string{"cni: {enabled: false}"}, rules(filter.Legacy, "", "-P FORWARD DROP"), []string{
			"error firewall: the chain FORWARD of iptables-legacy drops packets from the mesh, to the mesh" +
				" → install iptables-legacy (apt install iptables), so that meshd can add the rules itself; or run: iptables-legacy -I FORWARD -i meshd0 -j ACCEPT; iptables-legacy -I FORWARD -o meshd0 -j ACCEPT",
		}},
		{"nft", nil, nft("filter", "through", filter.Chain{Hook: "forward", Drops: true}), []string{
			"error firewall: the chain through of nft table inet filter drops packets " + everyForward +
				" → run: nft insert rule inet filter through iifname meshd0 accept; nft insert rule inet filter through oifname meshd0 accept; nft insert rule inet filter through iifname kube-bridge accept;" +
				" nft insert rule inet filter through oifname kube-bridge ct state established,related accept; nft insert rule inet filter through oifname kube-bridge ct status dnat accept (and add it to what sets up your firewall at boot)",
		}},
		{"nft, with conditions that meshd can't evaluate", nil, nft("filter", "through", filter.Chain{Hook: "forward", Drops: true, Rules: []filter.Rule{
			{Action: filter.Accept, Conditions: []filter.Condition{{Field: filter.Unknown}}},
			{Action: filter.Accept, Conditions: []filter.Condition{{Field: filter.In, Values: []string{"meshd0", "kube-bridge"}}}},
			{Action: filter.Accept, Conditions: []filter.Condition{{Field: filter.Out, Values: []string{"meshd0"}}}},
		}}), []string{
			"warning firewall: the chain through of nft table inet filter may drop packets of replies to pods" +
				" → run: nft insert rule inet filter through oifname kube-bridge ct state established,related accept; nft insert rule inet filter through oifname kube-bridge ct status dnat accept (and add it to what sets up your firewall at boot)",
		}},
		{"nft, another hook", nil, nft("filter", "out", filter.Chain{Drops: true}), nil},
		{"firewalld", nil, nft("firewalld", "filter_INPUT", filter.Chain{Hook: "input", Rules: []filter.Rule{{Action: filter.Drop}}}), []string{
			"error firewall: the chain filter_INPUT of firewalld drops packets " + everyInput +
				" → run: firewall-cmd --permanent --add-port=51820/udp; firewall-cmd --permanent --add-port=7946/udp; firewall-cmd --permanent --add-port=7946/tcp;" +
				" firewall-cmd --permanent --zone=trusted --add-interface=meshd0; firewall-cmd --permanent --zone=trusted --add-interface=kube-bridge; firewall-cmd --reload",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := healthy()
			f.Filters = []filter.Table{tt.table}
			if diff := cmp.Diff(tt.want, bad(Evaluate(parse(t, tt.config...), f))); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
		})
	}
}

// TestEvaluateFirewallOfTheLAN has the rules of a VPN that takes the range of carrier-grade
// NAT for its own, on a host whose LAN is in that range.
func TestEvaluateFirewallOfTheLAN(t *testing.T) {
	const text = "-P INPUT ACCEPT\n-N ts-input\n-A INPUT -j ts-input\n-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP"
	const drops = "drops packets to UDP port 51820, to UDP port 7946, to TCP port 7946, to UDP port 7947, of replies to this host" +
		` (the rule "saddr 100.64.0.0/10 iifname != tailscale0 drop" of the chain ts-input drops those from 100.64.1.2 to 100.64.1.1 on eth1)`
	f := healthy()
	lan := netip.MustParsePrefix("100.64.1.1/24")
	f.Host.Attached = append(f.Host.Attached, netcfg.LAN{Link: "eth1", Address: lan, MTU: 1500})
	f.Host.Private = []netcfg.PrivateAddress{{Link: "eth1", Address: lan}}
	cfg := parse(t, "node: {location: home}", "cluster: {mode: location}")

	f.Filters = []filter.Table{rules(filter.XTNFT, "iptables-nft", text)}
	want := []Finding{{OK, "firewall", "the chain INPUT of iptables-nft " + drops + "; meshd lets them through with rules of its own", ""}}
	if diff := cmp.Diff(want, f.firewall(cfg)); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
	table := rules(filter.NFT, "", text)
	table.Family, table.Name = "inet", "vpn"
	f.Filters = []filter.Table{table}
	start := "error firewall: the chain INPUT of nft table inet vpn " + drops + " → run: nft insert rule inet vpn INPUT udp dport 51820 accept; "
	if got := bad(f.firewall(cfg)); len(got) != 1 || !strings.HasPrefix(got[0], start) || !strings.Contains(got[0], "inet vpn INPUT udp dport 7947 accept;") {
		t.Errorf("findings: got %q, want %q", got, start)
	}

	// The daemon knows which node of the LAN it is whose packets are dropped.
	f.Filters = []filter.Table{rules(filter.Legacy, "", "-P INPUT ACCEPT\n-A INPUT -s 100.64.1.77/32 -j DROP")}
	if got := bad(f.firewall(cfg)); got != nil {
		t.Errorf("findings: got %q, want none", got)
	}
	f.Neighbors = []netip.Addr{netip.MustParseAddr("100.64.1.77")}
	if got := bad(f.firewall(cfg)); len(got) != 1 || !strings.Contains(got[0], "to UDP port 7947") || !strings.Contains(got[0], "drops those from 100.64.1.77 to 100.64.1.1 on eth1") {
		t.Errorf("findings: got %q, want one about 100.64.1.77", got)
	}

	// Without a LAN there, only the daemon knows a peer whose packets are dropped.
	f = healthy()
	f.Filters = []filter.Table{rules(filter.Legacy, "", "-P INPUT ACCEPT\n-A INPUT -s 203.0.113.7/32 -j DROP")}
	if got := bad(f.firewall(parse(t))); got != nil {
		t.Errorf("findings: got %q, want none", got)
	}
	f.Endpoints = []netip.AddrPort{netip.MustParseAddrPort("203.0.113.7:51820")}
	if got := bad(f.firewall(parse(t))); len(got) != 1 || !strings.Contains(got[0], "drops those from 203.0.113.7") {
		t.Errorf("findings: got %q, want one about 203.0.113.7", got)
	}
}

// TestInternalIP checks that a person sees which address was taken, why, and what others
// there were, and that the daemon's choice counts while it runs.
func TestInternalIP(t *testing.T) {
	f := healthy()
	f.Host.Private = []netcfg.PrivateAddress{
		{Link: "eth0", Address: netip.MustParsePrefix("192.168.1.1/24"), Default: true},
		{Link: "eth1", Address: netip.MustParsePrefix("10.0.0.1/16")},
		{Link: "wg0", Address: netip.MustParsePrefix("10.8.0.2/24"), Unfit: "a tunnel"},
	}
	for _, tt := range []struct {
		last []netip.Prefix // as the daemon says
		want []string
	}{
		{nil, []string{"192.168.1.1/24 on eth0: the default route leaves by its link", "not used: 10.0.0.1/16 on eth1: node.internal-ip can name it", "not used: 10.8.0.2/24 on wg0: its link is a tunnel"}},
		{[]netip.Prefix{netip.MustParsePrefix("10.0.0.1/16")}, []string{"10.0.0.1/16 on eth1: it was this node's internal IP before", "not used: 192.168.1.1/24 on eth0: node.internal-ip can name it", "not used: 10.8.0.2/24 on wg0: its link is a tunnel"}},
	} {
		f.InternalIPs = tt.last
		var got []string
		for _, finding := range f.internalIP(parse(t)) {
			got = append(got, finding.Text)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("last %v: findings (-want +got):\n%s", tt.last, diff)
		}
	}
}

// A link of jumbo frames gives the tunnels no more than Ethernet does: check says what the
// daemon sets.
func TestMTUOfJumboFrames(t *testing.T) {
	cfg, err := config.Parse("meshd.yaml", []byte("secret-file: /secret\n"))
	if err != nil {
		t.Fatal(err)
	}
	for egress, want := range map[int]string{9000: "meshd0 gets 1420", 1500: "meshd0 gets 1420", 1400: "meshd0 gets 1320"} {
		got := Facts{Host: netcfg.Facts{MTU: egress, MTULink: "eth0"}}.mtu(cfg)
		if len(got) != 1 || got[0].Level != OK || !strings.Contains(got[0].Text, want) {
			t.Errorf("MTU of %d: got %+v, want %q", egress, got, want)
		}
	}
}
