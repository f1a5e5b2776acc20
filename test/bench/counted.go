// SPDX-License-Identifier: Apache-2.0

package main

// countedMeasurements are taken where time is the number of executed instructions: what
// else the machine does makes no difference to them.
var countedMeasurements = []measurement{
	{"probe", 1, always(measureProbeSockets)},
	{"relaykernel", 1, always(measureKernelRelay)},
	{"relayrestart", 1, always(measureRelayRestarts)},
	{"firstping", runs, always(measureFirstPings)},
	{"pathspeed", 1, always(measurePathSpeed)},
	{"pathcut", 1, always(measureCuts)},
	{"pathswitch", 1, always(measureSwitches)},
}

var countedFigures = []figure{
	{name: "probe_throughput_ratio", unit: ratio, reduce: median, bound: atLeast(0.97)},
	{name: "relay_throughput_ratio", unit: ratio, reduce: median, bound: atLeast(0.85)},
	{name: "relay_restart_lost_packets", unit: "packets", reduce: worst, bound: atMost(0)},
	{name: "relay_away_lost_packets", unit: "packets", reduce: worst, bound: atMost(0)},
	{name: "punch_first_ping_ms", unit: "ms", reduce: median, bound: atMost(1000)},
	{name: "relay_first_ping_ms", unit: "ms", reduce: median, bound: atMost(500)},
	{name: "path_direct_mbit_per_s", unit: "Mbit/s", reduce: median},
	{name: "relay_user_throughput_ratio", unit: ratio, reduce: median, bound: atLeast(0.65)},
	{name: "tcp_throughput_ratio", unit: ratio, reduce: median, bound: atLeast(0.5)},
	{name: "path_cut_gap_ms", unit: "ms", reduce: worst, bound: atMost(1500)},
	{name: "path_cut_oneway_gap_ms", unit: "ms", reduce: worst, bound: atMost(1500)},
	{name: "path_switch_lost_packets", unit: "packets", reduce: worst, bound: atMost(0)},
}
