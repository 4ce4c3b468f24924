-- The relay has its own database (POSTGRES_DB); this one is for the records.
CREATE DATABASE records;
