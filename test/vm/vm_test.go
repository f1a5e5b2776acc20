// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// node is a machine with its addresses from meshd and its pod from containerd.
type node struct {
	*machine
	overlay string
	pod     string // the pod's address
	netns   string // its network namespace
}

// hostPort is the port of every node that leads to its pod.
const hostPort = 30080

// TestPackage takes three hosts through the life of the package. Each part continues from
// the state that the part before has left.
func TestPackage(t *testing.T) {
	var nodes []*node
	for _, m := range start(t, 3) {
		m.waitBooted(t)
		nodes = append(nodes, &node{machine: m})
	}
	for _, part := range []struct {
		name string
		run  func(*testing.T, []*node)
	}{
		{"install", testInstall},
		{"start", testStart},
		{"pods", testPods},
		{"restart", testRestart},
		{"networkd", testNetworkd},
		{"upgrade", testUpgrade},
		{"reboot", testReboot},
		{"purge", testPurge},
		{"client", testClient},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.run(t, nodes) }) {
			return
		}
	}
}

// testInstall: apt finds the package by its name; the package starts nothing, and prints
// what to do.
func testInstall(t *testing.T, nodes []*node) {
	for i, n := range nodes {
		useRepository(t, n, "old")
		install := "apt-get install -y meshd"
		if i == len(nodes)-1 { // as the README says
			install = "cd /payload/old && " + readQuickStart(t)["apt install"]
		}
		out := n.sh(t, install+" 2>&1 </dev/null")
		if got := strings.Count(out, "\nmeshd: "); got != 2 || !strings.Contains(out, "run: meshd init") {
			t.Errorf("%s: got %d lines of advice, want 2:\n%s", n.name, got, out)
		}
		if got := n.sh(t, "systemctl is-enabled meshd; systemctl is-active meshd; stat -c %a /etc/meshd; true"); got != "disabled\ninactive\n700" {
			t.Errorf("%s: after installation meshd is %q, want disabled, inactive, with /etc/meshd for root alone", n.name, got)
		}
	}
	// If it is started nevertheless, it fails once and prints why.
	n := nodes[0]
	if out, err := n.try("systemctl start meshd"); err == nil {
		t.Errorf("meshd starts without a configuration: %s", out)
	}
	if got := n.sh(t, "for p in ExecMainStatus ActiveState NRestarts; do systemctl show -P $p meshd; done"); got != "2\nfailed\n0" {
		t.Errorf("without a configuration: got exit status, state and restarts %q, want 2, failed, 0", got)
	}
	n.sh(t, "systemctl reset-failed meshd")
}

// useRepository makes apt look at one of the payload's repositories.
func useRepository(t *testing.T, n *node, name string) {
	t.Helper()
	n.sh(t, fmt.Sprintf(`set -e
		rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
		mkdir -p /etc/apt/keyrings
		cp /payload/%[1]s/apt/meshd.gpg /etc/apt/keyrings/
		cp /payload/%[1]s/apt/meshd.sources /etc/apt/sources.list.d/
		apt-get update --error-on=any`, name))
}

// k3sUnit stands in for k3s. Like that, it does not start before pods may.
const k3sUnit = `[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip -o address show meshd0 | grep -q " 10\.4\." && test -s /etc/cni/net.d/10-meshd.conflist'
[Install]
WantedBy=multi-user.target
`

// testStart: the README's three commands, to the letter, make a mesh. meshd.service is up as soon as the daemon answers, k3s once
// pods may start.
func testStart(t *testing.T, nodes []*node) {
	readme := readQuickStart(t)
	var token string
	for i, n := range nodes {
		var out string
		next := readme["k3s server"]
		if i == 0 {
			out = n.sh(t, readme["meshd init"]+" 2>&1")
			token = n.sh(t, readme["meshd token"]+" 2>/dev/null") // without a warning
		} else {
			out = n.onTerminal(t, readme["meshd join"], token)
			next = readme["k3s agent"]
		}
		if !strings.Contains(out, "Node:         "+n.name+", ready") || !strings.Contains(options(out), options(next)) {
			t.Errorf("%s: meshd init or join printed:\n%s", n.name, out)
		}
		n.sh(t, "cat >/etc/systemd/system/k3s.service <<'END'\n"+k3sUnit+"END\nsystemctl daemon-reload && systemctl enable --now k3s")
	}
	for _, n := range nodes {
		waitMesh(t, n, len(nodes)-1)
		if got := n.sh(t, "for p in WatchdogUSec CPUWeight; do systemctl show -P $p meshd; done"); got != "1min 30s\n1000" {
			t.Errorf("%s: got watchdog and CPU weight %q", n.name, got)
		}
		if got := n.sh(t, "readlink /opt/cni/bin/bridge; stat -c %a /etc/cni/net.d/10-meshd.conflist; stat -c %a /run/meshd/meshd.sock"); got != "/usr/lib/cni/bridge\n644\n600" {
			t.Errorf("%s: plugin, conflist, socket: got %q", n.name, got)
		}
	}
	reachNodes(t, nodes)
	checkUnit(t, nodes)
	checkGroup(t, nodes[1], nodes[2])
}

// checkGroup runs commands as a member of the group meshd, who may read and nothing else, and as somebody who
// may not even read.
func checkGroup(t *testing.T, n, other *node) {
	t.Helper()
	for _, tt := range []struct{ group, command, want string }{
		{"meshd", "status", "Node:         " + n.name},
		{"meshd", "why " + other.name, other.name + " answers in"},
		{"meshd", "forget " + other.name, "needs root"},
		{"nogroup", "status", "needs root"},
	} {
		if out, _ := n.try("setpriv --reuid=nobody --regid=" + tt.group + " --clear-groups meshd " + tt.command + " 2>&1"); !strings.Contains(out, tt.want) {
			t.Errorf("%s: meshd %s in the group %s: got %q, want %q", n.name, tt.command, tt.group, out, tt.want)
		}
	}
}

// checkUnit checks what the daemon may write to. For another directory, meshd check prints
// what to add to the unit, and then the daemon writes there.
func checkUnit(t *testing.T, nodes []*node) {
	t.Helper()
	n := nodes[0]
	got := n.sh(t, `nsenter --mount --target $(systemctl show -P MainPID meshd) bash -c '
		for dir in / /etc /etc/systemd/system /usr/bin /run /run/systemd/system /var/lib /root /srv \
			/etc/cni/net.d /etc/meshd /opt/cni/bin /etc/rancher /var/lib/meshd /run/meshd /run/wireguard; do
			touch $dir/.probe && rm $dir/.probe && echo $dir
		done 2>/dev/null
		for file in /proc/sys/kernel/sysrq /proc/sys/net/ipv4/ip_forward; do (echo 1 >$file) && echo $file; done 2>/dev/null
		test -c /dev/net/tun && ls /dev/vda; true' 2>/dev/null`)
	want := "/etc/cni/net.d\n/etc/meshd\n/opt/cni/bin\n/etc/rancher\n/var/lib/meshd\n/run/meshd\n/run/wireguard\n/proc/sys/net/ipv4/ip_forward"
	if got != want {
		t.Errorf("%s: the daemon may write to %q, want %q", n.name, got, want)
	}
	n.sh(t, `cp -p /etc/meshd.yaml /root/ && printf '\ncni:\n  conf-dir: /srv/cni\n' >>/etc/meshd.yaml`)
	out, err := n.try("meshd check")
	if err == nil || !strings.Contains(out, "[Service]\n") || !strings.Contains(out, "ReadWritePaths=-/srv/cni\n") {
		t.Errorf("%s: meshd check does not say what to add to the unit: %v\n%s", n.name, err, out)
	}
	n.sh(t, `systemctl restart --no-block meshd`)
	eventually(t, n.name+" says why it can't write", func() error {
		out, err := n.try("meshd status")
		if err == nil && !strings.Contains(out, "ReadWritePaths=-/srv/cni") {
			err = fmt.Errorf("got %s", out)
		}
		return err
	})
	n.sh(t, `mkdir -p /srv/cni /etc/systemd/system/meshd.service.d
		meshd check | grep -o '\[Service\]\|ReadWritePaths=.*' >/etc/systemd/system/meshd.service.d/override.conf
		systemctl daemon-reload && systemctl restart meshd`)
	eventually(t, n.name+" writes to /srv/cni", func() error {
		_, err := n.try("test -s /srv/cni/10-meshd.conflist")
		return err
	})
	n.sh(t, `rm -r /srv/cni /etc/systemd/system/meshd.service.d && cp -p /root/meshd.yaml /etc/ && rm /root/meshd.yaml
		systemctl daemon-reload && systemctl restart meshd`)
	waitMesh(t, n, len(nodes)-1)
}

// waitMesh waits until a node has tunnels to this many others, and stores its address.
func waitMesh(t *testing.T, n *node, peers int) {
	t.Helper()
	eventually(t, n.name+" has its tunnels", func() error {
		out, err := n.try("meshd status -o json")
		if err != nil {
			return err
		}
		var s control.Status
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return fmt.Errorf("read status: %w", err)
		}
		if !lab.Ready(s) || s.Reconcile.Error != "" || lab.TunnelsUp(s) != peers {
			return fmt.Errorf("got %d tunnels, want %d: %s", lab.TunnelsUp(s), peers, out)
		}
		n.overlay = s.Node.Overlay[0].String()
		return nil
	})
}

// reachNodes pings every node from every node, over the mesh.
func reachNodes(t *testing.T, nodes []*node) {
	t.Helper()
	for _, from := range nodes {
		for _, to := range nodes {
			reach(t, from, "", to.overlay)
		}
	}
}

// reach pings until an answer comes; prefix may enter a namespace.
func reach(t *testing.T, from *node, prefix, to string) {
	t.Helper()
	eventually(t, from.name+" reaches "+to, func() error {
		_, err := from.try(prefix + "ping -c 1 -W 2 " + to)
		return err
	})
}

// testPods: containerd makes pods with the configuration that meshd has written.
func testPods(t *testing.T, nodes []*node) {
	for _, n := range nodes {
		n.sh(t, "systemctl start containerd && ctr -n k8s.io images import /payload/pod.tar")
		runPod(t, n)
	}
	reachAll(t, nodes)
}

// runPod makes the node's pod, after a reboot anew.
func runPod(t *testing.T, n *node) {
	t.Helper()
	eventually(t, n.name+" runs a pod", func() error {
		out, err := n.try(fmt.Sprintf("/payload/pod remove pod-%[1]s && /payload/pod run pod-%[1]s %[2]d", n.name, hostPort))
		if err != nil {
			return err
		}
		if _, err := fmt.Sscan(out, &n.pod, &n.netns); err != nil {
			return fmt.Errorf("read address of pod from %q: %w", out, err)
		}
		return nil
	})
}

// reachAll reaches every node and every pod from every node and every pod, and
// each pod through the port of its host.
func reachAll(t *testing.T, nodes []*node) {
	t.Helper()
	reachNodes(t, nodes)
	for _, from := range nodes {
		inPod := "nsenter --net=" + from.netns + " "
		for _, to := range nodes {
			reach(t, from, "", to.pod)
			reach(t, from, inPod, to.pod)
			reach(t, from, inPod, to.overlay)
			if from == to {
				continue
			}
			for _, prefix := range []string{"", inPod} {
				eventually(t, from.name+" reaches the host port of "+to.name, func() error {
					out, err := from.try(fmt.Sprintf("%stimeout 10 bash -c 'exec 3<>/dev/tcp/%s/%d; cat <&3'", prefix, to.overlay, hostPort))
					if want := "pod-" + to.name + "\n"; err == nil && out != want {
						return fmt.Errorf("got answer %q, want %q", out, want)
					}
					return err
				})
			}
		}
	}
}

// pinged is the summary of ping.
var pinged = regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`)

// whilePinging pings between the pods of two nodes while f runs. No packet may be lost,
// except the last one, which may still be on its way.
func whilePinging(t *testing.T, from, to *node, f func()) {
	t.Helper()
	from.sh(t, fmt.Sprintf("nsenter --net=%s ping -i 0.05 %s >/run/ping 2>&1 & echo $! >/run/ping.pid", from.netns, to.pod))
	answered := func(least int) {
		eventually(t, from.name+" pings", func() error {
			out, err := from.try("grep -c 'bytes from' /run/ping")
			if n, _ := strconv.Atoi(strings.TrimSpace(out)); err == nil && n < least {
				err = fmt.Errorf("%d answers", n)
			}
			return err
		})
	}
	answered(20)
	f()
	before, _ := strconv.Atoi(from.sh(t, "grep -c 'bytes from' /run/ping"))
	answered(before + 20)
	from.sh(t, "kill -INT $(cat /run/ping.pid)")
	eventually(t, from.name+" stops pinging", func() error {
		out := from.sh(t, "tail -n 3 /run/ping")
		m := pinged.FindStringSubmatch(out)
		if m == nil {
			return fmt.Errorf("no summary in %s", out)
		}
		sent, _ := strconv.Atoi(m[1])
		received, _ := strconv.Atoi(m[2])
		t.Logf("%d packets sent, %d answered", sent, received)
		if sent-received > 1 {
			t.Errorf("packets were lost: %s", from.sh(t, "cat /run/ping"))
		}
		return nil
	})
}

// testRestart: neither restart nor reload loses a packet.
func testRestart(t *testing.T, nodes []*node) {
	n := nodes[1]
	const pid = "systemctl show -P MainPID meshd"
	whilePinging(t, nodes[0], n, func() {
		before := n.sh(t, pid)
		n.sh(t, "systemctl restart meshd")
		after := n.sh(t, pid)
		if after == before {
			t.Errorf("after a restart the process is the same, %s", after)
		}
		waitMesh(t, n, len(nodes)-1)
		n.sh(t, "systemctl reload meshd")
		if got := n.sh(t, pid); got != after {
			t.Errorf("after a reload the process is %s, want %s", got, after)
		}
		n.sh(t, "kill -KILL "+after)
		eventually(t, "systemd starts meshd again", func() error {
			if got := n.sh(t, pid); got == after || got == "0" {
				return fmt.Errorf("the process is %s", got)
			}
			return nil
		})
		waitMesh(t, n, len(nodes)-1)
	})
	// k3s was not stopped, and units that start next need not wait.
	if got := n.sh(t, "systemctl start meshd-online && systemctl is-active k3s"); got != "active" {
		t.Errorf("after restarts k3s is %s, want active", got)
	}
	// The restarts did not drain the node.
	if got := n.sh(t, "systemctl is-active meshd-drain"); got != "active" {
		t.Errorf("meshd-drain is %s, want active", got)
	}
}

// testNetworkd: systemd-networkd removes no route or address when it starts or reloads,
// not even with a file that matches every device. It removes only the backstops, which
// are on no device that could be unmanaged, and the daemon restores them.
func testNetworkd(t *testing.T, nodes []*node) {
	n := nodes[0]
	n.sh(t, `printf '[Match]\nName=*\n[Network]\nLinkLocalAddressing=no\n' >/etc/systemd/network/99-all.network
		ip monitor route address >/run/monitor 2>&1 & echo $! >/run/monitor.pid`)
	for _, script := range []string{"systemctl restart systemd-networkd", "networkctl reload", "networkctl reconfigure eth0", "systemctl restart systemd-networkd"} {
		n.sh(t, script+" && /lib/systemd/systemd-networkd-wait-online --interface=eth0")
	}
	n.sh(t, "kill $(cat /run/monitor.pid)")
	for line := range strings.Lines(n.sh(t, "cat /run/monitor")) {
		if strings.HasPrefix(line, "Deleted") && !strings.HasPrefix(line, "Deleted blackhole ") && (strings.Contains(line, "meshd0") || strings.Contains(line, "kube-bridge") || strings.Contains(line, "proto 77")) {
			t.Errorf("systemd-networkd made the kernel say: %s", line)
		}
	}
	if got := n.sh(t, "networkctl list --no-legend meshd0 kube-bridge | awk '{print $2, $5}'"); got != "meshd0 unmanaged\nkube-bridge unmanaged" && got != "kube-bridge unmanaged\nmeshd0 unmanaged" {
		t.Errorf("for systemd-networkd our devices are %q, want unmanaged", got)
	}
	eventually(t, "the backstops are back", func() error {
		const want = "blackhole 10.4.0.0/16\nblackhole 10.42.0.0/16"
		if got := n.sh(t, "ip route show proto 77 type blackhole | awk '{print $1, $2}'"); got != want {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		return nil
	})
	n.sh(t, "rm /etc/systemd/network/99-all.network")
	reachAll(t, nodes)
}

// testUpgrade: apt brings the new release, which runs at once; no packet is lost.
func testUpgrade(t *testing.T, nodes []*node) {
	for i, n := range nodes {
		useRepository(t, n, "new")
		configuration := n.sh(t, "cat /etc/meshd.yaml")
		from := nodes[(i+1)%len(nodes)]
		whilePinging(t, from, n, func() {
			out := n.sh(t, "apt-get upgrade -y 2>&1 </dev/null")
			if strings.Contains(out, "\nmeshd: ") {
				t.Errorf("%s: an upgrade gives advice to a host that needs none:\n%s", n.name, out)
			}
			if got := n.sh(t, "dpkg-query -W -f '${Version}' meshd; systemctl is-active meshd; readlink /proc/$(systemctl show -P MainPID meshd)/exe"); got != newRelease+"-1active\n/usr/bin/meshd" {
				t.Errorf("%s: after the upgrade got %q, want the new release to run", n.name, got)
			}
			waitMesh(t, n, len(nodes)-1)
		})
		// The user's file stays as it is.
		if got := n.sh(t, "cat /etc/meshd.yaml"); got != configuration {
			t.Errorf("%s: the configuration after the upgrade: got\n%s\nwant\n%s", n.name, got, configuration)
		}
	}
	reachAll(t, nodes)
}

// testReboot: after a reboot a host has its addresses again, without any login.
func testReboot(t *testing.T, nodes []*node) {
	n := nodes[2]
	overlay := n.overlay
	n.reboot(t)
	waitMesh(t, n, len(nodes)-1)
	if n.overlay != overlay {
		t.Errorf("after a reboot the address is %s, want %s", n.overlay, overlay)
	}
	if got := n.sh(t, "systemctl is-active k3s"); got != "active" {
		t.Errorf("after a reboot k3s is %s, want active: it has waited until pods may start", got)
	}
	n.sh(t, "systemctl start containerd")
	runPod(t, n)
	reachAll(t, nodes)
	// At shutdown the node was drained while the daemon still ran. The upgrade has
	// stopped the daemon before.
	log := n.sh(t, "journalctl --boot=-1 -o cat -u meshd -u meshd-drain")
	drained, stopped := strings.LastIndex(log, "Stopping meshd-drain.service"), strings.LastIndex(log, "Stopping meshd.service")
	if drained < 0 || stopped < drained {
		t.Errorf("meshd-drain did not stop before meshd:\n%s", log)
	}
}

// testPurge: a removed package leaves the network, a purged one nothing.
func testPurge(t *testing.T, nodes []*node) {
	n := nodes[2]
	whilePinging(t, nodes[0], n, func() {
		n.sh(t, "apt-get remove -y meshd 2>&1 </dev/null")
		if _, err := n.try("pgrep -x meshd"); err == nil {
			t.Errorf("meshd runs although its package was removed")
		}
	})
	n.sh(t, "/payload/pod remove pod-"+n.name+" && systemctl stop containerd")
	purge(t, n)
	// The other nodes go on.
	reach(t, nodes[0], "nsenter --net="+nodes[0].netns+" ", nodes[1].pod)
}

// purge purges the package, and looks for what is left of it.
func purge(t *testing.T, n *node) {
	t.Helper()
	out := n.sh(t, "apt-get purge -y meshd 2>&1 </dev/null")
	left := n.sh(t, `
		ip -o link show | grep -E 'meshd|kube-bridge|wireguard'
		ip route show table all proto 77; ip -6 route show table all proto 77
		nft list tables | grep meshd; iptables-save | grep -i meshd
		find /opt/cni/bin /etc/cni/net.d -mindepth 1
		find / -xdev -name '*meshd*' -not -path '/etc/apt/*' -not -path '/var/log/*' -not -path '/var/lib/apt/*' -not -path '/var/cache/*'
		find /run -name '*meshd*' -not -path '/run/systemd/*'
		dpkg-query -W meshd; getent group meshd
		true`)
	if left != "" {
		t.Errorf("after the purge there still is:\n%s\napt printed:\n%s", left, out)
	}
}

// testClient: the host that was a node is a client now. Its unit says how many nodes answer, and nothing
// of it is left when the package is purged.
func testClient(t *testing.T, nodes []*node) {
	n := nodes[2]
	eventually(t, n.name+" is forgotten", func() error {
		_, err := nodes[0].try("meshd forget " + n.name)
		return err
	})
	config := nodes[0].sh(t, "meshd client add home")
	n.sh(t, "apt-get install -y meshd 2>&1 </dev/null")
	n.sh(t, "umask 077; mkdir /etc/meshd/connect; cat >/etc/meshd/connect/home.conf <<'END'\n"+config+"\nEND\nsystemctl enable --now meshd-connect@home 2>&1")
	eventually(t, "both nodes answer", func() error {
		text, err := n.try("systemctl show -P StatusText meshd-connect@home")
		if err == nil && !strings.HasPrefix(text, "2 of 2 nodes answer; Services through ") {
			err = fmt.Errorf("the status is %q", text)
		}
		return err
	})
	reach(t, n, "", nodes[0].overlay)
	n.sh(t, "apt-get remove -y meshd 2>&1 </dev/null")
	if got, err := n.try("ip link show mesh-home"); err == nil {
		t.Errorf("the device is left after the package was removed: %s", got)
	}
	purge(t, n)
}
