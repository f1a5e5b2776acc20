// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/meshd/meshd/test/lab"
)

// What a cluster would have: a resolver, and a Service with a name.
const (
	serviceName = "web.default.svc.cluster.local"
	backendPort = 7000
)

var (
	resolverAddr = netip.MustParseAddr("10.43.0.10")
	serviceAddr  = netip.MustParseAddr("10.43.0.80")
)

// services returns kube-proxy's rules for both: the resolver in one pod, the Service in
// another.
const services = `
table ip kube {
	chain services {
		type nat hook prerouting priority dstnat
		ip daddr %[1]s meta l4proto { tcp, udp } th dport 53 meta mark set meta mark or 0x4000 dnat ip to %[2]s
		ip daddr %[3]s tcp dport 80 meta mark set meta mark or 0x4000 dnat to %[4]s
	}
	chain postrouting {
		type nat hook postrouting priority srcnat
		meta mark & 0x4000 == 0 return
		meta mark set meta mark xor 0x4000
		masquerade fully-random
	}
}
`

// tryClient adds a laptop behind another NAT, sets it up with wg-quick, and checks that it
// reaches every pod, a Service, and a name. It returns a summary.
func tryClient(ctx context.Context, l *lab.Lab, wireguardGo string, stations []station) (string, error) {
	first, last := stations[0], stations[len(stations)-1]
	stop, err := serve(ctx, stations, first.pod, last.pod)
	if err != nil {
		return "", err
	}
	defer stop()
	site, err := l.Site(ctx, "cafe", lab.SiteOptions{Underlay: lab.Home})
	if err != nil {
		return "", err
	}
	laptop, err := site.Host(ctx, "laptop")
	if err != nil {
		return "", err
	}
	config, err := first.Meshd(ctx, "client", "add", "laptop")
	if err != nil {
		return "", err
	}
	if wireguardGo, err = filepath.Abs(wireguardGo); err != nil {
		return "", fmt.Errorf("find wireguard-go: %w", err)
	}
	quick, err := laptop.WGQuick("mesh", config, wireguardGo)
	if err != nil {
		return "", err
	}
	if err := quick.Up(ctx); err != nil {
		return "", err
	}
	fmt.Printf("laptop %s behind %s: wg-quick up mesh\n", laptop.Address(), laptop.Public())
	return reach(ctx, laptop, stations)
}

// serve has a resolver answer in one pod and a web server's stand-in in another, and
// every node translate.
func serve(ctx context.Context, stations []station, resolver, backend *lab.Pod) (stop func(), err error) {
	dns := resolver.Command(ctx, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--no-resolv", "--no-hosts",
		"--bind-interfaces", "--listen-address="+resolver.Addresses[0].String(), "--address=/"+serviceName+"/"+serviceAddr.String())
	if err := dns.Start(); err != nil {
		return nil, fmt.Errorf("start dnsmasq: %w", err)
	}
	go func() { _ = dns.Wait() }() // it is killed with its host
	echo, err := lab.ListenEcho(backend.Do, backendPort)
	if err != nil {
		return nil, err
	}
	rules := fmt.Sprintf(services, resolverAddr, resolver.Addresses[0], serviceAddr, netip.AddrPortFrom(backend.Addresses[0], backendPort))
	for _, s := range stations {
		const path = "/run/services.nft"
		err = errors.Join(err, s.WriteFile(path, rules, 0o600))
		_, nftErr := s.Run(ctx, "nft", "-f", path)
		err = errors.Join(err, nftErr)
	}
	return func() { _ = echo.Close() }, err
}

// reach counts what the laptop reaches.
func reach(ctx context.Context, laptop *lab.Host, stations []station) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, pingLimit)
	defer cancel()
	pods := 0
	var errs []error
	for _, s := range stations {
		if err := ping(ctx, laptop, "pod", s.pod.Addresses[0]); err != nil {
			errs = append(errs, fmt.Errorf("laptop to %s: %w", s.Name, err))
			continue
		}
		pods++
	}
	reached, names := 1, 1
	if _, err := lab.SourceSeen(ctx, laptop.Do, netip.AddrPortFrom(serviceAddr, 80)); err != nil {
		reached, errs = 0, append(errs, fmt.Errorf("laptop to the Service %s: %w", serviceAddr, err))
	}
	if err := resolve(ctx, laptop); err != nil {
		names, errs = 0, append(errs, fmt.Errorf("laptop to the name %s: %w", serviceName, err))
	}
	return fmt.Sprintf("client %d of %d pods, %d of 1 Services, %d of 1 names", pods, len(stations), reached, names), errors.Join(errs...)
}

// resolve asks for the Service's name as programs do. The resolver may not be up yet.
func resolve(ctx context.Context, laptop *lab.Host) error {
	for {
		out, err := laptop.Run(ctx, "getent", "ahostsv4", serviceName)
		if err == nil && !strings.HasPrefix(out, serviceAddr.String()+" ") {
			err = fmt.Errorf("it is %q, want %s", out, serviceAddr)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}
