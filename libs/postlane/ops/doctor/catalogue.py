"""Every check of `postlane doctor` by name, with why what it looks for matters. docs/doctor.md is made from this."""

from __future__ import annotations

CONFIGURATION = {
    "configuration-file": "Without a postlane.yaml the built-in lanes send to one server on this machine.",
    "unknown-variable": "A misspelt variable is not read: the process goes by the default and says nothing.",
    "test-setting": "Variables of the tests break or switch off what keeps the books exact.",
    "kafka-option": "An option that the Kafka library does not know, or that the books depend on, stops every service.",
    "kafka-encryption": "Mails, addresses and credentials travel readable to everyone on the way to the brokers.",
    "client-message-size": "A client that takes less than a record may have cannot write or read the largest mails.",
    "served-lanes": "A sender that is told to serve a lane that does not exist ends at its start.",
    "idle-provider": "A provider that no lane names is never sent through: often the name in the lane is misspelt.",
    "single-provider": "A lane with one provider waits for as long as that one is down.",
    "duplicate-provider": "Two names for one server are no failover: both are down together.",
    "intent-lifetime": "An intent that outlives a session lets two senders write the body of one mail.",
    "drain-time": "A sender that drains longer than its stop may take is killed and leaves mails uncertain.",
    "expiry-retention": "Kafka would drop dispatch records of mails that are still to be sent.",
    "dedup-retention": "The log must hold the requests at least as long as their keys are remembered.",
    "events-retention": "A replay asks the events what was delivered; what they forgot may be mailed twice.",
    "bounce-key": "Without the key no mail can be signed and no bounce verified; who else has it can forge bounces.",
    "replication-setting": "With fewer than three copies the loss of one disk can lose acknowledged mails.",
}
MACHINE = {
    "data-folder": "The router's store and the sender's flight recorder must be written before a mail may go.",
    "disk-space": "A full disk stops the router's store, the recorder and a SQLite ledger.",
    "open-files": "Each SMTP connection is a file; a process out of files stops sending in bursts.",
    "flight-recorder": "After a crash the recorder tells what had been begun; without it all of it is uncertain.",
    "instance-id": "Processes with one id fence each other; a new id at each start costs a rebalance and the recorder.",
}
PROVIDERS = {
    "provider-password": "Without a password that can be read the sender ends at its start.",
    "provider-password-exposed": "A password that others can read lets them send in your name.",
    "provider-encryption": "Mails, and the password where there is one, travel readable to everyone on the way.",
    "provider-ca-file": "A certificate cannot be checked against authorities that cannot be read.",
    "provider-reachable": "A provider that cannot be reached takes no mail; its lane waits or fails over.",
    "lane-unserved": "No provider of the lane takes a mail now: everything in it waits.",
    "provider-greeting": "A provider that greets with an error turns this client away.",
    "provider-starttls": "TLS is required and never given up: no mail goes to a provider that does not offer it.",
    "provider-certificate": "A certificate that is not valid stops every mail to its provider at once.",
    "provider-certificate-name": "A certificate for another name may be another server: nothing is sent to it.",
    "provider-certificate-expiry": "On the day that it ends, every mail to this provider stops.",
    "provider-auth": "A provider that offers no AUTH, or no mechanism known here, refuses every mail.",
    "provider-login": "A refused password stops every mail to this provider, and some providers lock the account.",
    "provider-pipelining": "Without PIPELINING each mail costs four round trips: far fewer mails a second.",
    "provider-size": "Mails above the provider's SIZE bounce although Postlane accepts them.",
}
DOMAINS = {
    "domain-mx": "Without MX (or with a null MX) bounces and replies cannot come back; many receivers refuse that.",
    "domain-spf": "Receivers that check SPF refuse or junk mail from hosts that the domain does not name.",
    "domain-dkim": "Gmail and Yahoo demand DKIM of bulk senders; without it their mail is refused.",
    "domain-dmarc": "Gmail and Yahoo demand a DMARC policy of bulk senders.",
}
BROKERS = {
    "kafka-reachable": "Everything goes through Kafka: nothing is accepted, routed or sent without it.",
    "broker-count": "One broker is one disk: what was acknowledged is gone with it.",
    "offsets-retention": "A group that is scaled to zero for longer forgets its positions; its sender then stays shut.",
    "transaction-timeout": "The broker refuses every transaction that asks for more: no service can start.",
    "broker-message-size": "A broker that takes less than a record may have refuses the largest mails.",
    "auto-create-topics": "A misspelt prefix makes topics with one partition and the wrong retention, silently.",
    "unclean-election": "A replica that is behind may become leader: acknowledged mails and books are lost.",
    "log-cleaner": "The compact topics (suppressions, templates, state) would grow for ever.",
    "authorizer": "Without an authorizer whoever reaches the brokers can write the books.",
    "missing-acl": "A service that lacks a right ends, or reads a topic as missing.",
    "broker-clock": "Due times, expiry and retention are told by clocks; a wrong one sends early, late or never.",
    "record-clock": "Records from the future come from a machine whose clock is ahead; its mails expire wrongly.",
}
TOPICS = {
    "topic-missing": "Services wait for their topics and do nothing meanwhile.",
    "topic-prefix": "Another prefix has the topics that this one lacks: it is probably misspelt here.",
    "topic-partitions": "A mail keeps one partition number everywhere; with another count its books are elsewhere.",
    "topic-partition-numbers": "Topics that share partition numbers must have the same number of partitions.",
    "topic-replication": "With fewer copies the loss of a broker can lose acknowledged mails.",
    "topic-in-sync": "Too few replicas in sync: an acknowledged mail is on one disk. Too many: one loss stops all.",
    "topic-cleanup": "delete where compact is declared forgets suppressions; compact where delete is, loses requests.",
    "topic-retention": "Records that leave earlier than declared may be mails that were still to be sent.",
    "topic-options": "An option that differs from its declaration surprises later.",
    "topic-message-size": "A topic that takes less than a record may have refuses the largest mails.",
    "state-retention": "The books must outlive the dispatch records that they speak of.",
    "seen-retention": "A key that was forgotten within the dedup horizon is sent again.",
    "replicas": "A partition without a leader stands still; one with replicas behind is one failure from it.",
}
FLEET = {
    "service-running": "Nobody reads its topic: mails are accepted and wait, or stories grow old.",
    "service-idle": "Members beyond the number of partitions have nothing to do.",
    "member-static": "A member without an instance id costs its group a rebalance at every restart.",
    "member-shared": "One instance id on two machines: they fence each other by turns.",
    "offsets-lost": "Books without a position: a sender would have to guess, so the partition stays shut.",
    "offsets-below-log": "Retention took dispatch records before they were settled.",
    "service-version": "Services of different versions are meant for the time of a rolling upgrade only.",
    "service-ready": "A service that is not ready does not do its work.",
    "service-clock": "Due times and expiry go by the clocks of the services.",
}
BOOKS = {
    "ledger-database": "Without its database the ledger folds nothing: status, watch and stories are old or empty.",
    "ledger-schema": "A ledger refuses a schema that is newer than itself; an older one is migrated at its next start.",
    "ledger-behind": "Status and stories lag behind what has happened.",
    "ledger-unreadable": "Events that were passed over are missing from stories and counts.",
    "unsettled-age": "Mails that wait this long stand behind something that does not mend itself.",
    "uncertain-unattended": "Nobody knows whether these arrived; only a person or the provider's log can tell.",
    "dead-letters-unattended": "These were given up and reach nobody until they are replayed or discarded.",
    "pause-forgotten": "What is paused waits and then expires.",
    "backup-age": "What a backup does not hold yet is lost with the cluster.",
}
WHY: dict[str, str] = {
    **CONFIGURATION,
    **MACHINE,
    **PROVIDERS,
    **DOMAINS,
    **BROKERS,
    **TOPICS,
    **FLEET,
    **BOOKS,
}
SECTIONS: dict[str, dict[str, str]] = {
    "Configuration": CONFIGURATION,
    "This machine": MACHINE,
    "Providers": PROVIDERS,
    "Sender domains": DOMAINS,
    "Brokers": BROKERS,
    "Topics": TOPICS,
    "Services": FLEET,
    "Books": BOOKS,
}
